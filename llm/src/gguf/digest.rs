//! The SHA-256 of a file, read in pieces.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::GgufError;

/// The SHA-256 of the file at `path` in lower-case hexadecimal. `progress` is told after each
/// piece how many bytes are done and how many there are.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(
    path: impl AsRef<Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<String, GgufError> {
    let path = path.as_ref();
    let io = |source| GgufError::Io { path: path.to_owned(), doing: "read", source };
    let mut file = File::open(path).map_err(io)?;
    let total = file.metadata().map_err(io)?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut sha = Sha256::new();
    let mut done = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                sha.update(&buffer[..n]);
                done += n as u64;
                progress(done, total);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
    }
    Ok(sha.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
