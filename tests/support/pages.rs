//! The documents, and the code in them. For tests/docs and for the tests of the command line.

use std::fs;
use std::path::{Path, PathBuf};

/// A document.
pub(crate) struct Page {
    /// From the package's root.
    pub(crate) name: String,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All documents but the changelog, which also speaks of what was.
pub(crate) fn pages() -> Vec<Page> {
    let mut names = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if Path::new(&name).extension().is_some_and(|e| e == "md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names.into_iter().map(|name| Page { text: read(&name), name }).collect()
}

impl Page {
    /// The lines of its blocks of commands, those that a `\` continues joined.
    pub(crate) fn commands(&self) -> Vec<String> {
        let blocks = self.text.split("\n```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("bash\n"));
        blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// The code within its sentences, line breaks as spaces.
    pub(crate) fn spans(&self) -> Vec<String> {
        let prose: Vec<_> = format!("\n{}", self.text).split("\n```").step_by(2).map(str::to_owned).collect();
        let spans = prose.iter().flat_map(|part| part.split('`').skip(1).step_by(2));
        spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}
