//! What a child says it found in a source, and what a job asks for, to a plan: a message and findings, with a zero byte between.
#![no_main]

use farm::job::JobSpec;
use farm::media::MediaInfo;
use farm::task::TaskId;
use libfuzzer_sys::fuzz_target;
use scheduler::plan::plan;

fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|byte| *byte == 0) else { return };
    let (spec, info) = data.split_at(end);
    let Ok(spec) = serde_json::from_slice::<JobSpec>(spec) else { return };
    let Ok(info) = serde_json::from_slice::<MediaInfo>(info.get(1..).unwrap_or_default()) else { return };
    if spec.check().is_err() {
        return;
    }
    let Ok(plan) = plan(&spec, &info) else { return };
    for pass in plan.passes() {
        let mut next = 0;
        for chunk in &pass.video.chunks {
            assert_eq!(chunk.start, next, "chunks follow each other");
            assert!(chunk.end > chunk.start, "and are not empty");
            next = chunk.end;
        }
        assert_eq!(next, pass.video.frames, "and make up the whole");
    }
    let tasks = TaskId::encodes_of(&plan).count() + TaskId::joins_of(&plan).count();
    assert!(tasks <= 50_000, "{tasks} tasks");
});
