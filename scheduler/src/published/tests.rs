//! What is published, held against what a scheduler writes and what its seal names.

use std::collections::BTreeSet;

use farm::Life;
use farm::job::{JobId, Layout, Mp4, PosterSpec, StoryboardSpec};
use farm::task::Token;

use super::*;
use crate::plan::plan;
use crate::seal::seal;
use crate::step::{JobState, sealed_documents};
use crate::testing::{markers, picture, sound, source, spec};

/// A job with everything, sealed.
fn sealed(layout: Layout) -> JobState {
    let mut spec = spec();
    (spec.output.layout, spec.output.mp4) = (layout, Mp4::EachRungAndSound);
    (spec.poster, spec.storyboard) = (Some(PosterSpec::default()), Some(StoryboardSpec::default()));
    let info = source(vec![picture(640, 360, "25", 30)], vec![sound(1, 48_000, 30)]);
    let plan = plan(&spec, &info).expect("a plan");
    let mut job = JobState::new(JobId::try_from("job".to_owned()).expect("an id"), Life::FIRST, spec);
    job.markers = markers(&plan, &info);
    job.seal = Some(seal(&plan, &job.markers).expect("a seal"));
    job.plan = Some(plan);
    job
}

#[test]
fn it_is_all_that_is_written_at_the_end_and_all_that_the_seal_names_and_nothing_else() {
    for layout in [Layout::Segments, Layout::SingleFile, Layout::Both] {
        let job = sealed(layout);
        let seal = job.seal.as_ref().expect("a seal");
        let published = Published::of(seal);
        let (documents, made): (Vec<_>, Vec<_>) =
            published.items.iter().partition(|(_, item)| matches!(item, Item::Document { .. }));
        let written = sealed_documents(&job).expect("documents").expect("it is sealed");
        let written: BTreeMap<&str, Kind> = written.iter().map(|document| (document.key.as_str(), document.kind)).collect();
        let told = documents.into_iter().map(|(key, item)| match item {
            Item::Document { kind } | Item::Made { kind, .. } => (key.as_str(), *kind),
        });
        assert_eq!(told.collect::<BTreeMap<_, _>>(), written, "{layout:?}");
        let made: BTreeSet<&str> = made.into_iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(made, seal.keys().collect::<BTreeSet<_>>(), "{layout:?}");
        assert!(made.iter().any(|key| key.ends_with("/download.mp4")) && made.iter().any(|key| key.ends_with("/poster.jpg")));
    }
}

#[test]
fn sizes_and_kinds_are_those_of_the_objects() {
    let job = sealed(Layout::Segments);
    let seal = job.seal.as_ref().expect("a seal");
    let published = Published::of(seal);
    for (id, whole, segment) in [("v360", Kind::VideoMp4, Kind::VideoSegment), ("a0", Kind::AudioMp4, Kind::AudioSegment)] {
        let rendition = seal.renditions.iter().find(|rendition| rendition.id.0 == id).expect("it is made");
        let Media::Objects { pieces } = &rendition.media else { panic!("segments") };
        let (_, init) = rendition.inits()[0];
        assert_eq!(published.get(&init.key), Some(Item::Made { kind: whole, bytes: init.bytes }));
        let last = pieces.last().and_then(|piece| piece.objects.last()).expect("a segment");
        assert_eq!(published.get(&last.key), Some(Item::Made { kind: segment, bytes: last.bytes }));
        let download = seal.mp4.iter().find(|download| download.id.0 == id).expect("it is made");
        assert_eq!(published.get(&download.object.key), Some(Item::Made { kind: whole, bytes: download.object.bytes }));
    }
}

#[test]
fn what_is_beside_it_is_not_published() {
    let published = Published::of(sealed(Layout::Segments).seal.as_ref().expect("a seal"));
    let other = keys::segment(&farm::plan::RenditionId("v360".to_owned()), &Token::random(), 0);
    for key in [other.as_str(), "", "master.m3u8/", "/master.m3u8", "../state/term/0", "v360", "mine.txt", keys::FILES_MASTER] {
        assert_eq!(published.get(key), None, "{key}");
    }
}
