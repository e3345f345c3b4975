//! Certificates of a test's own, made by the openssl command (3 or newer): an authority, a server at localhost that it
//! vouches for, and clients.

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
    ca_key: PathBuf,
}

impl Certificates {
    /// # Panics
    /// Without an openssl command.
    pub(crate) fn make(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name);
        let (ca, ca_key, cert, key) = (file("ca.pem"), file("ca.key"), file("server.pem"), file("server.key"));
        let names = "subjectAltName=DNS:localhost";
        run(request("authority of a test", &ca_key, &ca).args([
            "-noenc",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]));
        let made = Self { ca, cert, key, ca_key };
        // A node of a cluster is its neighbours' client, too.
        let server = ["-noenc", "-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", names];
        run(made.vouched("localhost", &made.key, &made.cert).args(server));
        made
    }

    /// A client that the authority vouches for under this name: its certificate, and its key, which `password` opens.
    pub(crate) fn client(&self, name: &str, password: &str) -> [PathBuf; 2] {
        let [cert, key] = ["pem", "key"].map(|kind| self.ca.with_file_name(format!("{name}.{kind}")));
        let client = ["-addext", "extendedKeyUsage=clientAuth", "-passout", &format!("pass:{password}")];
        run(self.vouched(name, &key, &cert).args(client));
        [cert, key]
    }

    fn vouched(&self, name: &str, key: &Path, cert: &Path) -> Command {
        let mut command = request(name, key, cert);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args([Path::new("-CA"), &self.ca, Path::new("-CAkey"), &self.ca_key]);
        command
    }
}

fn request(name: &str, key: &Path, cert: &Path) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"])
        .args(["-subj", &format!("/CN={name}")])
        .args([Path::new("-keyout"), key, Path::new("-out"), cert]);
    command
}

fn run(command: &mut Command) {
    let done = command.output().expect("the openssl command, for certificates of this test");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
