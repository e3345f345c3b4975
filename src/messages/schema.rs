//! A schema as the registry has it, `.proto` text with the files that it imports, compiled while the program runs.
//!
//! The text is somebody else's: sizes and nesting are bounded before it is parsed, and whatever is wrong with it is an
//! error's text.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use prost_reflect::{FileDescriptor, MessageDescriptor};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::{Decoder, Framing};

/// Brackets within brackets, at most: the parser descends once for each.
const MAX_NESTING: usize = 100;

/// A compiled schema. Its messages' decoders are made when they are first asked for.
#[derive(Debug)]
pub struct Schema {
    file: FileDescriptor,
    decoders: RwLock<HashMap<Vec<u32>, Decoder>>,
}

struct Texts(HashMap<String, String>);

impl FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let text = self.0.get(name).ok_or_else(|| protox::Error::file_not_found(name))?;
        File::from_source(name, text)
    }
}

impl Schema {
    /// Compiles the file `root` of `texts` (by the names that they import each other by). Google's well-known types need
    /// not be among them. Takes milliseconds: not for a thread that must not block.
    ///
    /// # Errors
    /// What is wrong, and in which file.
    pub fn compile(root: &str, texts: HashMap<String, String>) -> Result<Self, String> {
        if let Some((name, _)) = texts.iter().find(|(_, text)| nesting(text) > MAX_NESTING) {
            return Err(format!("{name}: brackets are nested more than {MAX_NESTING} deep"));
        }
        let mut resolver = ChainFileResolver::new();
        resolver.add(Texts(texts));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        // Its `Debug` has the place, too: file, line and column.
        compiler.open_file(root).map_err(|error| format!("{error:?}"))?;
        let file = compiler.descriptor_pool().get_file_by_name(root);
        let file = file.ok_or_else(|| format!("{root}: nothing was compiled"))?;
        Ok(Self { file, decoders: RwLock::default() })
    }

    /// The decoder of the message that a frame's indexes name.
    ///
    /// # Errors
    /// When the file has no such message.
    pub fn decoder(&self, indexes: &[u32]) -> Result<Decoder, String> {
        if let Some(decoder) = self.decoders.read().unwrap_or_else(PoisonError::into_inner).get(indexes) {
            return Ok(decoder.clone());
        }
        let message = self.message(if indexes.is_empty() { &[0] } else { indexes });
        let message = message.ok_or_else(|| {
            let messages: Vec<_> = self.messages().collect();
            format!("no message has the index {indexes:?}; the file's messages are {}", messages.join(", "))
        })?;
        let decoder = Decoder::of(message, Framing::Confluent);
        let mut decoders = self.decoders.write().unwrap_or_else(PoisonError::into_inner);
        Ok(decoders.entry(indexes.to_vec()).or_insert(decoder).clone())
    }

    /// The decoder of a message by its full name; `None`: the file itself declares no such message.
    pub fn decoder_of(&self, name: &str) -> Option<Decoder> {
        let message = self.file.parent_pool().get_message_by_name(name)?;
        (message.parent_file() == self.file).then(|| Decoder::of(message, Framing::Confluent))
    }

    /// The full names of the file's own messages that are in no other.
    pub fn messages(&self) -> impl Iterator<Item = String> {
        self.file.messages().map(|message| message.full_name().to_owned())
    }

    fn message(&self, indexes: &[u32]) -> Option<MessageDescriptor> {
        let (first, inner) = indexes.split_first()?;
        let outermost = self.file.messages().nth(*first as usize)?;
        inner.iter().try_fold(outermost, |message, index| message.child_messages().nth(*index as usize))
    }
}

/// How deep brackets stand in each other, those in comments and texts included.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'{' | b'[' | b'(' | b'<' => depth += 1,
            b'}' | b']' | b')' | b'>' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = r#"syntax = "proto3"; package acme;
        import "google/protobuf/timestamp.proto"; import "acme/money.proto";
        message Other {}
        message Order { message Line { string sku = 1; } repeated Line lines = 1; Money price = 2; google.protobuf.Timestamp at = 3; }"#;
    const MONEY: &str = r#"syntax = "proto3"; package acme; message Money { int64 units = 1; }"#;

    fn compile(texts: &[(&str, &str)]) -> Result<Schema, String> {
        let texts: HashMap<_, _> = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Schema::compile("root.proto", texts)
    }

    #[test]
    fn a_frames_indexes_name_a_message_of_the_file() {
        let schema = compile(&[("root.proto", ORDER), ("acme/money.proto", MONEY)]).unwrap();
        #[track_caller]
        fn check(schema: &Schema, indexes: &[u32], expected: Result<&str, &str>) {
            match (schema.decoder(indexes), expected) {
                (Ok(decoder), Ok(name)) => assert_eq!(decoder.message(), name),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (got, _) => panic!("{got:?}, expected {expected:?}"),
            }
        }
        check(&schema, &[], Ok("acme.Other"));
        check(&schema, &[0], Ok("acme.Other"));
        check(&schema, &[1], Ok("acme.Order"));
        check(&schema, &[1, 0], Ok("acme.Order.Line"));
        check(&schema, &[2], Err("acme.Other, acme.Order"));
        check(&schema, &[1, 0, 0], Err("no message has the index"));
        assert_eq!(schema.decoder(&[1]).unwrap().to_json(b"\x12\x02\x08\x05").unwrap(), r#"{"price":{"units":"5"}}"#);
        // A frame that it writes is read as the same message.
        let framed = schema.decoder_of("acme.Order").unwrap().frame(vec![], 9);
        let frame = super::super::Frame::read(&framed).unwrap();
        assert_eq!((frame.schema_id, &*frame.indexes, frame.length), (9, &[1][..], framed.len()));
        assert!(schema.decoder_of("acme.Money").is_none(), "it has a file of its own");
    }

    #[test]
    fn a_schema_that_cannot_be_compiled_says_why() {
        #[track_caller]
        fn check(texts: &[(&str, &str)], expected: &str) {
            let error = compile(texts).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        check(&[("root.proto", ORDER)], "acme/money.proto");
        check(&[("root.proto", "message {")], "root.proto:1:9");
        check(&[("root.proto", &format!("syntax = \"proto3\"; {}", "message A {".repeat(100_000)))], "nested");
        check(&[("root.proto", &format!("option a = {}", "[".repeat(1_000_000)))], "nested");
        let cycle = r#"import "root.proto";"#;
        check(&[("root.proto", r#"import "a.proto";"#), ("a.proto", cycle)], "cycle");
    }
}
