//! Places in storage that a tenant may not name, however they are written.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{B, OPERATOR, REEL, message, nothing_was_written, objects, submit, two_tenants};

/// Places that B may not name, whose own is `{root}b/`: neither for an output nor for a source.
const FOREIGN: &[&str] = &[
    // Another's, what begins as its own does, and what is above.
    "{root}a/",
    "{root}a",
    "{root}a/film.mp4",
    "{root}a-evil/",
    "{root}b-evil/",
    "{root}b.mp4",
    "{root}bb/",
    "{root}B/",
    "{root}",
    "s3://{bucket}/{folder}",
    "s3://{bucket}/b/",
    "s3://{bucket}/",
    "s3://{bucket}",
    // Up, as far as it goes.
    "{root}b/..",
    "{root}b/../a/",
    "{root}b/../b-evil/",
    "{root}b/../../../etc/",
    "{root}b/x/../../a/",
    "{root}b/.\t./a/",
    "{root}b/.%2e/a/",
    "{root}b/%2e%2e/a/",
    "{root}b/%2E%2E/a/",
    "{root}b/..%2fa/",
    "{root}b%2f..%2fa/",
    "{root}b/%2e%2e%2fa/",
    "{root}b/%2e%2fx/",
    "{root}b/%ff/",
    // Slashes.
    "{root}/b/",
    "s3:///{folder}/b/",
    "s3:/{bucket}/{folder}/b/",
    "s3:{bucket}/{folder}/b/",
    "s3://{bucket}\\{folder}\\b\\",
    "//{bucket}/{folder}/b/",
    "/{folder}/b/",
    // Other buckets, and what makes them look like the right one.
    "s3://elsewhere/{folder}/b/",
    "s3://{BUCKET}/{folder}/b/",
    "s3://{bucket}./{folder}/b/",
    "s3://{bucket}.elsewhere.example/{folder}/b/",
    "s3://{bucket}@elsewhere/{folder}/b/",
    "s3://{bucket}:pw@elsewhere/{folder}/b/",
    "s3://me:pw@{bucket}/{folder}/a/",
    "s3://{bucket}:443/{folder}/a/",
    "{root}a/?/{folder}/b/",
    "{root}a/#/{folder}/b/",
    "s3://{bucket}/?/{folder}/b/",
    "s3://{bucket}/#/{folder}/b/",
    // Other schemes, and none.
    "file:///etc/passwd",
    "file:///{folder}/b/",
    "file://{bucket}/{folder}/b/",
    "ftp://{bucket}/{folder}/b/",
    "gs://{bucket}/{folder}/b/",
    "data:,x",
    "s3:",
    "s3://",
    " ",
    "",
];

/// Places of B's own that are not named plainly. Of sources, workers say so.
const NOT_PLAIN: [&str; 10] = [
    "s3://me@{bucket}/{folder}/b/out/",
    "s3://me:pw@{bucket}/{folder}/b/out/",
    "s3://{bucket}:9000/{folder}/b/out/",
    "{root}b/out/?versionId=1",
    "{root}b/out/#x",
    "{root}b//out/",
    "{root}b/%00/",
    "{root}b/x%5cy/",
    "https://{bucket}/{folder}/b/",
    "http://127.0.0.1/{folder}/b/",
];

/// Where the farm keeps its own: nobody names that, an operator neither.
const STATE: [&str; 6] = [
    "{root}state/",
    "{root}state",
    "{root}state/jobs/film/spec.json",
    "{root}st%61te/peertube/",
    "{root}b/../state/",
    "{root}b/..%2fstate/",
];

/// A message whose edit names another source, in each way that there is, one at a time.
fn edits(whole: &Value, source: &Value) -> [Value; 4] {
    let overlay = json!({"source": source, "height": 0.1});
    let steps = [json!({"before": source}), json!({"after": source}), json!({"sound": source}), json!({"overlay": overlay})];
    steps.map(|step| {
        let mut edited = whole.clone();
        edited["edit"] = json!([{"keep": {"from": 1}}, step]);
        edited
    })
}

#[test]
fn a_tenant_names_no_place_of_another_and_nobody_one_of_the_farm() -> Result<()> {
    let mut farm = two_tenants()?;
    let _scheduler = farm.scheduler()?;
    for tenant in ["a", "b"] {
        farm.put(&format!("{tenant}/film.mp4"), b"this is no film".to_vec())?;
    }
    let before = objects(&farm)?;
    let (source, output, root) = (farm.url("b/film.mp4")?, farm.url("b/out/")?, farm.url("")?);
    let (bucket, folder) = root.trim_start_matches("s3://").trim_end_matches('/').split_once('/').context("a bucket")?;
    let place = |pattern: &str| {
        let bucket_named = pattern.replace("{bucket}", bucket).replace("{BUCKET}", &bucket.to_uppercase());
        bucket_named.replace("{folder}", folder).replace("{root}", &root)
    };
    let refused = |token: &str, message: &Value| -> Result<()> {
        let said = submit(&farm, token, message)?;
        ensure!(said.status == 400 && !said.whole.contains("pw@"), "{message}: {}", said.whole);
        Ok(())
    };
    let good = message("x", &source, &output);
    let at = |pattern: &str| json!({"url": place(pattern)});
    for pattern in FOREIGN.iter().chain(&STATE) {
        refused(B, &message("x", &source, &place(pattern)))?;
        refused(B, &message("x", &place(pattern), &output))?;
        edits(&good, &at(pattern)).iter().try_for_each(|edited| refused(B, edited))?;
    }
    for pattern in NOT_PLAIN {
        refused(B, &message("x", &source, &place(pattern)))?;
    }
    for pattern in STATE {
        refused(OPERATOR, &message("x", &source, &place(pattern)))?;
        refused(OPERATOR, &message("x", &place(pattern), &output))?;
        edits(&good, &at(pattern)).iter().try_for_each(|edited| refused(OPERATOR, edited))?;
    }
    // What a job may not say of its source, it may not of another.
    let headers = json!({"url": source, "headers": {"host": "elsewhere"}});
    edits(&good, &headers).iter().try_for_each(|edited| refused(B, edited))?;
    // An operator may speak for a tenant, and keeps to its places then.
    let mut for_b = message("x", &source, &place("{root}a/"));
    for_b["tenant"] = "b".into();
    refused(OPERATOR, &for_b)?;
    let mut for_b = good;
    for_b["tenant"] = "b".into();
    edits(&for_b, &at("{root}a/film.mp4")).iter().try_for_each(|edited| refused(OPERATOR, edited))?;
    nothing_was_written(&farm, &before)?;
    // The message is good but for its places.
    let mut good = message(REEL, &source, &output);
    good["edit"] = edits(&good, &json!({ "url": source })).iter().map(|edited| edited["edit"][1].clone()).collect();
    let said = submit(&farm, B, &good)?;
    ensure!(said.status == 201, "{}", said.whole);
    Ok(())
}
