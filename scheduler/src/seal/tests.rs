//! What fits together is sealed; whatever does not is named.

use farm::job::JobSpec;
use farm::media::MediaInfo;

use super::*;
use crate::plan::plan;
use crate::testing::{markers, picture, sound, source, spec};

fn job(layout: Layout) -> (Plan, BTreeMap<TaskId, Marker>) {
    let mut spec: JobSpec = spec();
    spec.output.layout = layout;
    spec.chunk_seconds = Some(8);
    let info: MediaInfo = source(vec![picture(1280, 720, "60", 30)], vec![sound(1, 48_000, 30)]);
    let plan = plan(&spec, &info).expect("a plan");
    let markers = markers(&plan, &info);
    (plan, markers)
}

/// Changes what a task made of its first rendition.
fn change(markers: &mut BTreeMap<TaskId, Marker>, task: TaskId, change: impl FnOnce(&mut Encoded)) {
    let marker = markers.get_mut(&task).expect("a marker");
    let Outcome::Encoded { renditions, .. } = &mut marker.outcome else { panic!("{task} encodes") };
    change(renditions.first_mut().expect("a rendition"));
}

#[test]
fn everything_the_plan_asks_for_is_sealed_in_its_order() {
    let (plan, markers) = job(Layout::Segments);
    let seal = seal(&plan, &markers).expect("a seal");
    let ids: Vec<_> = seal.renditions.iter().map(|rendition| rendition.id.0.as_str()).collect();
    assert_eq!(ids, ["v720", "v480", "v360", "v240", "a0"]);
    let first = &seal.renditions[0];
    assert_eq!(first.segments().map(|segment| u64::from(segment.samples)).sum::<u64>(), 1800);
    assert_eq!(first.ticks(), 30 * u64::from(first.timescale));
    assert_eq!(first.inits().len(), 1, "the same content is used once");
    assert_eq!(first.keys().len(), 8 + 1);
    assert_eq!(seal.executions.len(), markers.len());
    let text = serde_json::to_string(&seal).expect("JSON");
    assert_eq!(serde_json::from_str::<Seal>(&text).expect("a seal"), seal);
}

#[test]
fn other_parameter_sets_keep_an_init_of_their_own() {
    let (plan, mut markers) = job(Layout::Segments);
    change(&mut markers, TaskId::Video(1), |made| made.init.sha256 = "other".to_owned());
    let seal = seal(&plan, &markers).expect("a seal");
    let places: Vec<_> = seal.renditions[0].inits().iter().map(|(place, _)| *place).collect();
    assert_eq!(places, [0, 1, 2]);
    assert_eq!(seal.renditions[1].inits().len(), 1);
}

#[test]
fn a_joined_file_stands_for_its_parts() {
    let (plan, mut markers) = job(Layout::SingleFile);
    let sealed = seal(&plan, &markers).expect("a seal");
    assert_eq!(sealed.keys().count(), 5, "no init and no part");
    assert!(sealed.keys().all(|key| !key.contains("/part-")));
    // A long part goes out in several objects.
    change(&mut markers, TaskId::Video(1), |made| {
        let rest = Object { bytes: 10, ..made.objects[0].clone() };
        made.objects[0].bytes -= 10;
        made.objects.push(rest);
    });
    assert_eq!(seal(&plan, &markers).expect("a seal"), sealed);
    let pack = TaskId::Pack(RenditionId("v720".to_owned()));
    if let Some(Marker { outcome: Outcome::Packed { object }, .. }) = markers.get_mut(&pack) {
        object.bytes += 1;
    }
    assert_eq!(refusal(&plan, &markers), "objects and segments of v720 by pack-v720 do not match in number or size");
    // Made by different encoders, the file begins with an init segment of its own.
    change(&mut markers, TaskId::Video(1), |made| {
        made.init.sha256 = "other".to_owned();
        made.codecs = "avc1.640C32".to_owned();
    });
    let sealed = seal(&plan, &markers).expect("a seal").renditions.remove(0);
    let Media::File { init_bytes, .. } = sealed.media else { panic!("not a file") };
    assert_eq!((init_bytes, sealed.codecs.as_str()), (701, "avc1.640032"), "true of both");
    if let Some(Marker { outcome: Outcome::Packed { object }, .. }) = markers.get_mut(&pack) {
        object.bytes = 100;
    }
    assert_eq!(refusal(&plan, &markers), "objects and segments of v720 by pack-v720 do not match in number or size");
}

fn refusal(plan: &Plan, markers: &BTreeMap<TaskId, Marker>) -> String {
    let failure = seal(plan, markers).expect_err("a refusal");
    assert_eq!(failure.code, Code::Internal);
    failure.message.strip_prefix("the result does not fit together: ").expect("the reason").to_owned()
}

#[test]
fn what_does_not_fit_is_named() {
    type Change = fn(&mut Encoded);
    let cases: [(TaskId, Change, &str); 13] = [
        (
            TaskId::Video(1),
            |made| made.codecs = "avc1.4D4028".to_owned(),
            "video-00001 made v720 in avc1.4D4028, others in avc1.640028",
        ),
        (
            TaskId::Video(1),
            |made| made.segments[0].samples -= 1,
            "video-00001 made 239 samples in segment 0 of v720, the plan says 240",
        ),
        (TaskId::Video(1), |made| made.segments.clear(), "video-00001 made 0 segments of v720, the plan says 2"),
        (
            TaskId::Video(1),
            |made| made.segments[1].ticks += 1,
            "video-00001 made segment 1 of v720 last 40081 ticks of 1/10020 s, which is not what its samples last",
        ),
        (
            TaskId::Video(1),
            |made| made.segments[1].key_frames[1].ticks += 1,
            "video-00001 made other key frames in segment 1 of v720 than the plan says",
        ),
        (
            TaskId::Video(1),
            |made| made.segments[0].key_frames[1].bytes += made.segments[0].bytes,
            "video-00001 made other key frames in segment 0",
        ),
        (TaskId::Video(1), |made| made.segments[0].key_frames.clear(), "video-00001 made other key frames in segment 0"),
        (
            TaskId::Video(1),
            |made| {
                made.timescale *= 2;
                for segment in &mut made.segments {
                    segment.ticks *= 2;
                    segment.key_frames.iter_mut().for_each(|key| key.ticks *= 2);
                }
            },
            "video-00001 made v720 in 1/20040 s, others in 1/10020 s",
        ),
        (
            TaskId::Video(1),
            |made| made.objects[0].bytes += 1,
            "objects and segments of v720 by video-00001 do not match in number or size",
        ),
        (TaskId::Video(0), |made| made.rendition.0.push('x'), "video-00000 made no v720"),
        (TaskId::Video(0), |made| made.init.key.insert(0, 'x'), "video-00000 stored v720 under xv720/"),
        (TaskId::Audio(0), |made| made.segments.truncate(2), "audio-0 made 382976 ticks of a0, the plan says 1441024"),
        (TaskId::Audio(0), |made| made.segments[0].ticks += 5000, "audio-0 made 14"),
    ];
    for (task, make, expected) in cases {
        let (plan, mut markers) = job(Layout::Segments);
        change(&mut markers, task, make);
        let refusal = refusal(&plan, &markers);
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    let (plan, mut markers) = job(Layout::Segments);
    markers.remove(&TaskId::Video(2));
    assert_eq!(refusal(&plan, &markers), "task video-00002 has no marker");
    let probe = markers.get(&TaskId::Probe).expect("a probe").clone();
    markers.insert(TaskId::Audio(0), probe.clone());
    markers.insert(TaskId::Video(2), probe);
    assert_eq!(refusal(&plan, &markers), "the marker of video-00002 is of another kind");
}
