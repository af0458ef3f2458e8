//! What the user calls a source or a place to write, as a URL.

use std::path::{Path, PathBuf};

use farm::{Code, Failure};
use url::Url;

/// A source: a path, or an `http(s)://` or `s3://` URL.
///
/// # Errors
/// When it is neither, or a path to nothing.
pub fn source(text: &str) -> Result<Url, Failure> {
    if let Some(url) = url(text) {
        return match url.scheme() {
            "http" | "https" | "file" | "s3" => Ok(url),
            other => {
                let message = format!("'{other}:' cannot be read: use a file, or an http(s) or s3 URL");
                Err(Failure::new(Code::InvalidRequest, message))
            }
        };
    }
    let unreadable = |why: &dyn std::fmt::Display| Failure::new(Code::SourceUnreadable, format!("{text} cannot be read: {why}"));
    let path = std::fs::canonicalize(text).map_err(|e| unreadable(&e))?;
    Url::from_file_path(&path).map_err(|()| unreadable(&"it is not a path"))
}

/// A source for a farm: a URL as it is, or a file of this machine, which the farm has to see at the same place.
///
/// # Errors
/// When it is neither.
pub fn any_source(text: &str) -> Result<Url, Failure> {
    url(text).map_or_else(|| source(text), Ok)
}

/// A place for a farm to write to: a URL as it is, or a folder, which the farm has to see at the same place.
///
/// # Errors
/// When it is neither.
pub fn any_output(text: &str) -> Result<Url, Failure> {
    if let Some(url) = url(text) {
        return Ok(url);
    }
    let refused =
        |why: &dyn std::fmt::Display| Failure::new(Code::InvalidRequest, format!("{text} is no place to write to: {why}"));
    let path = std::path::absolute(text).map_err(|error| refused(&error))?;
    Url::from_directory_path(&path).map_err(|()| refused(&"it is not a path"))
}

/// A folder to write to, made if need be; and whether it was made.
///
/// # Errors
/// When it is not a folder and cannot be made one.
pub fn output_folder(text: &str) -> Result<(PathBuf, bool), Failure> {
    let refused =
        |why: &dyn std::fmt::Display| Failure::new(Code::StorageUnwritable, format!("{text} cannot be written to: {why}"));
    if let Some(url) = url(text) {
        let message = format!("'{}:' cannot be written to: use a folder or an s3 URL", url.scheme());
        return Err(Failure::new(Code::InvalidRequest, message));
    }
    let path = Path::new(text);
    let made = !path.exists();
    std::fs::create_dir_all(path).map_err(|e| refused(&e))?;
    Ok((std::fs::canonicalize(path).map_err(|e| refused(&e))?, made))
}

/// An `s3://` URL, if the text is one.
pub fn s3_url(text: &str) -> Option<Url> {
    url(text).filter(|url| url.scheme() == "s3")
}

/// A text with a scheme and `//`; anything else is a path.
fn url(text: &str) -> Option<Url> {
    let scheme = text.split_once("://")?.0;
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_scheme { Url::parse(text).ok() } else { None }
}
