//! Which schema `produce` writes with: one that is named, the newest that is registered, or one that it registers.

use std::collections::BTreeSet;
use std::path::Path;

use prost_reflect::FileDescriptor;

use super::ProduceArgs;
use crate::adapters::registry::{self, Source};
use crate::app::wire;
use crate::config::{Config, Framing, Pipeline};
use crate::messages::{Decoder, SchemaError};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The flags or the configuration do not go together.
    #[error("{0}")]
    Usage(String),
    /// The pipeline cannot be built.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The registry has none, or does not answer.
    #[error("{subject}: {source}{}", remedy(source))]
    Registry {
        /// What was asked for.
        subject: String,
        /// What it said.
        source: registry::Error,
    },
}

impl Error {
    /// The process's exit code for this error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Registry { source: registry::Error::Unreachable { .. }, .. }
            | Self::Registry { source: registry::Error::Schema(SchemaError::Unavailable { .. }), .. } => 69,
            _ => 64,
        }
    }
}

fn remedy(error: &registry::Error) -> &'static str {
    match error {
        registry::Error::Refused { status, .. } if status.as_u16() == 404 => "; --register registers the message",
        _ => "",
    }
}

/// The declaration that events are made by, and the id of its schema where values are framed.
pub(crate) async fn choose(
    args: &ProduceArgs,
    pipeline: &Pipeline,
    config: &Config,
) -> Result<(Decoder, Option<u32>), Error> {
    let registry = wire::registry(config)?.filter(|_| pipeline.framing == Framing::Confluent);
    let Some(registry) = registry.filter(|_| args.schema_id.is_none()) else {
        if args.register {
            let why = "--register: needs `framing: confluent` in the pipeline, and registry.urls";
            return Err(Error::Usage(why.to_owned()));
        }
        return Ok((wire::decoder(pipeline)?, args.schema_id));
    };
    let subject = format!("{}-value", pipeline.topic);
    let failed = |source| Error::Registry { subject: subject.clone(), source };
    if args.register {
        let decoder = wire::decoder(pipeline)?;
        let mut sources = Vec::new();
        let file = decoder.descriptor().parent_file();
        collect(&file, args.proto_path.as_deref(), &mut sources, &mut BTreeSet::new())?;
        let id = registry.register(&subject, &sources).await.map_err(failed)?;
        return Ok((decoder, Some(id)));
    }
    let (id, schema) = registry.latest(&subject).await.map_err(failed)?;
    let decoder = match &pipeline.message {
        Some(name) => schema.decoder_of(name),
        None => schema.decoder(&[]).ok(),
    };
    let messages: Vec<_> = schema.messages().collect();
    let decoder = decoder.ok_or_else(|| {
        let wanted = pipeline.message_name();
        Error::Usage(format!("{subject}: schema {id} has no message {wanted}; it has {}", messages.join(", ")))
    })?;
    Ok((decoder, Some(id)))
}

/// A file with all that it imports, those before it. Google's own are every registry's.
fn collect(
    file: &FileDescriptor,
    folder: Option<&Path>,
    sources: &mut Vec<Source>,
    seen: &mut BTreeSet<String>,
) -> Result<(), Error> {
    let name = file.name();
    if name.starts_with("google/protobuf/") || !seen.insert(name.to_owned()) {
        return Ok(());
    }
    for import in file.dependencies() {
        collect(&import, folder, sources, seen)?;
    }
    let text = match folder {
        Some(folder) => {
            let path = folder.join(name);
            std::fs::read_to_string(&path)
                .map_err(|e| Error::Usage(format!("--proto-path: cannot read {}: {e}", path.display())))?
        }
        None => Decoder::built_in_text(name)
            .ok_or_else(|| {
                Error::Usage(format!("--register: {name} is not built in; --proto-path DIR says where it is"))
            })?
            .to_owned(),
    };
    let imports = file.dependencies().map(|import| import.name().to_owned()).collect();
    sources.push(Source { name: name.to_owned(), text, imports });
    Ok(())
}
