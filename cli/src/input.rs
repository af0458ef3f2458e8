//! What the user calls a source or a place to write, as a URL.

use std::path::{Path, PathBuf};

use farm::{Code, Failure};
use url::Url;

/// A source: a path, or an `http(s)://` URL.
///
/// # Errors
/// When it is neither, or a path to nothing.
pub fn source(text: &str) -> Result<Url, Failure> {
    if let Some(url) = url(text) {
        return match url.scheme() {
            "http" | "https" | "file" => Ok(url),
            other => Err(Failure::new(Code::InvalidRequest, format!("'{other}:' cannot be read: use a file or an http(s) URL"))),
        };
    }
    let unreadable = |why: &dyn std::fmt::Display| Failure::new(Code::SourceUnreadable, format!("{text} cannot be read: {why}"));
    let path = std::fs::canonicalize(text).map_err(|e| unreadable(&e))?;
    Url::from_file_path(&path).map_err(|()| unreadable(&"it is not a path"))
}

/// A folder to write to, made if need be; and whether it was made.
///
/// # Errors
/// When it is not a folder and cannot be made one.
pub fn output_folder(text: &str) -> Result<(PathBuf, bool), Failure> {
    let refused =
        |why: &dyn std::fmt::Display| Failure::new(Code::StorageUnwritable, format!("{text} cannot be written to: {why}"));
    if let Some(url) = url(text) {
        let message = format!("'{}:' cannot be written to: use a folder", url.scheme());
        return Err(Failure::new(Code::InvalidRequest, message));
    }
    let path = Path::new(text);
    let made = !path.exists();
    std::fs::create_dir_all(path).map_err(|e| refused(&e))?;
    Ok((std::fs::canonicalize(path).map_err(|e| refused(&e))?, made))
}

/// A text with a scheme and `//`; anything else is a path.
fn url(text: &str) -> Option<Url> {
    let scheme = text.split_once("://")?.0;
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_scheme { Url::parse(text).ok() } else { None }
}
