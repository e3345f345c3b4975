//! Certificates of a test's own, made by the openssl command (3 or newer): an authority, and a server at localhost that
//! it vouches for.

use std::path::{Path, PathBuf};
use std::process::Command;

/// PEM files in a folder of the test's.
pub(crate) struct Certificates {
    /// The authority: what a client is told to trust.
    pub(crate) ca: PathBuf,
    /// The server's, made out to localhost and not to 127.0.0.1.
    pub(crate) cert: PathBuf,
    /// The server's key (PKCS#8), readable by its owner only.
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// # Panics
    /// Without an openssl command.
    pub(crate) fn make(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name);
        let (ca, ca_key, cert, key) = (file("ca.pem"), file("ca.key"), file("server.pem"), file("server.key"));
        let names = "subjectAltName=DNS:localhost";
        run(request("authority of a test", &ca_key, &ca).args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]));
        run(request("localhost", &key, &cert)
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"])
            .args(["-addext", names])
            .args([Path::new("-CA"), &ca, Path::new("-CAkey"), &ca_key]));
        Self { ca, cert, key }
    }
}

fn request(name: &str, key: &Path, cert: &Path) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}")])
        .args([Path::new("-keyout"), key, Path::new("-out"), cert]);
    command
}

fn run(command: &mut Command) {
    let done = command.output().expect("the openssl command, for certificates of this test");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
