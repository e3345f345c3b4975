//! Compiles `proto/` into Rust types and one descriptor set, in pure Rust: no `protoc` is needed. And tells the binary
//! where git notes the commit.
//!
//! The descriptor set goes into the binary beside the types, so that JSON, field access and generated samples work on
//! the built-in messages by the same code as on a user's own `descriptor_set` file.

use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run through cargo")?);
    println!("cargo::rustc-env=LADDER_REFLOG={}", reflog(&out)?.display());

    let mut files = Vec::new();
    collect(Path::new("proto"), &mut files)?;
    // The order of a directory is the file system's: sort, so that the same source gives the same binary.
    files.sort();

    let set = protox::compile(&files, ["proto"])?;
    // The comments become the types' documentation; nobody reads them in the binary.
    let mut bare = set.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(out.join("descriptors.bin"), bare.encode_to_vec())?;

    // What `produce --register` gives to a schema registry.
    let name = |file: &PathBuf| file.strip_prefix("proto").map(|name| name.display().to_string());
    let texts = files.iter().map(|file| Ok((name(file)?, std::fs::read_to_string(file)?)));
    let texts = texts.collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()?;
    std::fs::write(out.join("texts.rs"), format!("&{texts:?}"))?;

    // Ordered maps: the same event encodes to the same bytes.
    prost_build::Config::new().btree_map(["."]).compile_fds(set)?;
    Ok(())
}

/// The file in which git notes each move of HEAD; an empty one where this is no checkout, or git keeps none.
fn reflog(out: &Path) -> std::io::Result<PathBuf> {
    let root = std::env::current_dir()?;
    if root.join(".git").exists() // not the repository of somebody who unpacked an archive in his own
        && let Ok(git) = Command::new("git").args(["rev-parse", "--git-path", "logs/HEAD"]).output()
    {
        let path = root.join(String::from_utf8_lossy(&git.stdout).trim());
        if path.is_file() {
            let head = path.parent().and_then(Path::parent).unwrap_or(&root).join("HEAD");
            // Where a target directory outlives the checkout that it was filled from, the path has to be found anew. A commit
            // does not touch this file.
            println!("cargo::rerun-if-changed={}", head.display());
            return Ok(path);
        }
    }
    let none = out.join("no-reflog");
    std::fs::write(&none, "")?;
    Ok(none)
}

/// All `.proto` files below `dir`.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
