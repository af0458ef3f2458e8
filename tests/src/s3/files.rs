//! s3s-fs keeps `a/b` as a file in a folder, and answers 500 where a folder or a file is in the way. A bucket has neither:
//! here such requests get the answers of a server that takes an object for the end of its path.

use std::path::Path;

use super::Operation;

/// The answer to a request that s3s-fs would stumble over: a status, and an error code.
pub(super) fn in_the_way(root: &Path, operation: Operation, path: &str, body: &[u8]) -> Option<(u16, &'static str)> {
    let is_blocked = |path: &str| {
        let full = root.join(path.trim_start_matches('/'));
        let is_below_a_file = full.ancestors().skip(1).take_while(|above| *above != root).any(Path::is_file);
        let is_folder = full.is_dir() && (operation != Operation::Put || !remove_if_empty(&full));
        is_below_a_file || is_folder
    };
    // It would make the bucket as it goes.
    if !path.split('/').nth(1).is_some_and(|bucket| root.join(bucket).is_dir()) {
        return Some((404, "NoSuchBucket"));
    }
    match operation {
        Operation::Get | Operation::Head => is_blocked(&decoded(path)).then_some((404, "NoSuchKey")),
        Operation::Put | Operation::PutNew | Operation::BeginUpload => {
            is_blocked(&decoded(path)).then_some((403, "AccessDenied"))
        }
        Operation::Delete => is_blocked(&decoded(path)).then_some((204, "")),
        // Clients then delete one by one.
        Operation::DeleteBatch => {
            let text = String::from_utf8_lossy(body);
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
            keys.into_iter().any(|key| is_blocked(&format!("{path}/{key}"))).then_some((501, "NotImplemented"))
        }
        _ => None,
    }
}

/// Whether parts of the upload that a query names differ in size, the last one excepted. s3s-fs keeps each in a file.
pub(super) fn has_unequal_parts(root: &Path, query: &str) -> bool {
    let upload = query.split('&').find_map(|pair| pair.strip_prefix("uploadId=")).unwrap_or_default();
    let prefix = format!(".upload_id-{upload}.part-");
    let mut parts: Vec<(u32, u64)> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| Some((file.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok()?, file.metadata().ok()?.len())))
        .collect();
    parts.sort_unstable();
    parts.pop();
    parts.windows(2).any(|pair| pair[0].1 != pair[1].1)
}

/// Removes an object, as if it had never been there.
pub(super) fn remove(root: &Path, path: &str) {
    // One that is not there is as well.
    let _ = std::fs::remove_file(root.join(decoded(path).trim_start_matches('/')));
}

fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match byte {
            b'%' => bytes.extend(digit(rest.next()).zip(digit(rest.next())).map(|(high, low)| (high * 16 + low) as u8)),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Removes a folder in which there is no file, on any level; whether it is gone.
fn remove_if_empty(folder: &Path) -> bool {
    let Ok(items) = std::fs::read_dir(folder) else { return false };
    for item in items.flatten() {
        if !item.path().is_dir() || !remove_if_empty(&item.path()) {
            return false;
        }
    }
    std::fs::remove_dir(folder).is_ok()
}
