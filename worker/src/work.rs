//! What a task of a plan comes down to: the order for the child, and where the renditions it makes belong. Pure.

use farm::Class;
use farm::encoder::Extent;
use farm::job::{Layout, Mp4};
use farm::plan::{Plan, RenditionId, Rung};
use farm::task::TaskId;

use pipelines::{AudioOrder, Montage, OnDevice, Order, VideoOrder};

use crate::process::Urgency;
use crate::rack::Need;

/// An encode task, ready to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Encode {
    /// What the child is told.
    pub(crate) order: Order,
    /// How it stands beside others: what is published at the end does not hold up what is published first.
    pub(crate) urgency: Urgency,
    /// The renditions it makes, in the order's order.
    pub(crate) renditions: Vec<Rendition>,
}

impl Encode {
    /// What a device is to bear for the rungs that are pinned to its class, for each in the plan's order.
    pub(crate) fn needs(&self, class: Class) -> Vec<Need> {
        let Order::Video(VideoOrder { plan, .. }) = &self.order else { return Vec::new() };
        let pinned = plan.rungs.iter().filter(|rung| class.is_hardware() && rung.class == class);
        let need = |Rung { codec, width, height, .. }: &Rung| Need { codec: *codec, extent: Extent::of(*width, *height) };
        pinned.map(need).collect()
    }

    /// The same, of sources of these sizes in bytes, by number.
    pub(crate) fn of_sizes(mut self, sizes: Vec<u64>) -> Self {
        if let Order::Video(VideoOrder { edit: Some(edit), .. }) | Order::Audio(AudioOrder { edit: Some(edit), .. }) =
            &mut self.order
        {
            edit.bytes = sizes;
        }
        self
    }

    /// The same, on a device.
    pub(crate) fn on(mut self, device: OnDevice) -> Self {
        if let Order::Video(order) = &mut self.order {
            order.device = Some(device);
        }
        self
    }

    /// Places of the renditions that are made on the device: the first of those that are pinned to its class, one for each of its
    /// sessions.
    pub(crate) fn on_device(&self) -> Vec<usize> {
        let Order::Video(VideoOrder { plan, device: Some(OnDevice { device, sessions }), .. }) = &self.order else {
            return Vec::new();
        };
        let pinned = plan.rungs.iter().enumerate().filter(|(_, rung)| rung.class == device.class);
        pinned.map(|(place, _)| place).take(*sessions as usize).collect()
    }
}

/// A rendition that an execution makes a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendition {
    /// Its name.
    pub(crate) id: RenditionId,
    /// Picture or sound.
    pub(crate) medium: Medium,
    /// Number, within the rendition, of the first segment made.
    pub(crate) first_segment: u64,
}

/// What a rendition carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// Frames.
    Picture,
    /// Samples.
    Sound,
}

/// What is to be done for an encode task, or `None` when the plan has no such task.
pub(crate) fn encode(plan: &Plan, task: &TaskId) -> Option<Encode> {
    let (origin_ns, lead_ns) = (plan.origin_ns, plan.lead_ns);
    let edit = plan.edit.as_ref().map(|plan| Montage { plan: plan.clone(), bytes: Vec::new() });
    match task {
        TaskId::Probe | TaskId::ProbeOther(_) | TaskId::Stills | TaskId::Text | TaskId::Pack(_) | TaskId::Mp4(_) => None,
        TaskId::Video(chunk) | TaskId::First(chunk) => {
            let video = plan.passes().find(|pass| pass.task(*chunk) == *task)?.video;
            let start = video.chunks.get(*chunk as usize)?.start;
            let first_segment = start.checked_div(u64::from(video.segment_frames))?;
            let rendition = |id: &RenditionId| Rendition { id: id.clone(), medium: Medium::Picture, first_segment };
            let renditions = video.rungs.iter().map(|rung| rendition(&rung.id)).collect();
            let order = Order::Video(VideoOrder { plan: video.clone(), chunk: *chunk, origin_ns, lead_ns, device: None, edit });
            let can_wait = plan.first.is_some() && matches!(task, TaskId::Video(_));
            let urgency = if can_wait { Urgency::CanWait } else { Urgency::Usual };
            Some(Encode { order, urgency, renditions })
        }
        TaskId::Audio(index) => {
            let audio = plan.audio.get(*index as usize)?;
            let rendition = Rendition { id: audio.id.clone(), medium: Medium::Sound, first_segment: 0 };
            let edit = edit.map(|montage| of_rendition(montage, *index as usize));
            let order = Order::Audio(AudioOrder { plan: audio.clone(), origin_ns, lead_ns, edit });
            Some(Encode { order, urgency: Urgency::Usual, renditions: vec![rendition] })
        }
    }
}

/// The clips with the sound of one rendition alone.
fn of_rendition(mut montage: Montage, rendition: usize) -> Montage {
    for clip in &mut montage.plan.clips {
        clip.sounds = clip.sounds.get(rendition).copied().into_iter().collect();
    }
    montage
}

/// How the media of a plan are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storing {
    /// An object per segment.
    Segments,
    /// In few large objects, which are only joined.
    Parts,
    /// An object per segment, and besides where each sample is, for a plain MP4.
    SegmentsAndSamples,
}

impl Storing {
    /// What a plan calls for.
    pub(crate) fn of(plan: &Plan) -> Self {
        match (plan.mp4, plan.layout) {
            (Mp4::EachRung | Mp4::EachRungAndSound, _) => Self::SegmentsAndSamples,
            (Mp4::None, Layout::SingleFile) => Self::Parts,
            (Mp4::None, Layout::Segments | Layout::Both) => Self::Segments,
        }
    }
}

/// Whether all parts of a rendition are to decode with one init segment: where they become one file.
pub(crate) fn joins_parts(plan: &Plan) -> bool {
    plan.layout.has_files() || plan.mp4 != Mp4::None
}

/// Whose parts make up a whole rendition: its medium, and the tasks that make them, in order. `None` when the plan has no
/// such rendition.
pub(crate) fn parts_of(plan: &Plan, rendition: &RenditionId) -> Option<(Medium, Vec<TaskId>)> {
    let tasks = TaskId::makers_of(plan, rendition);
    let medium = match tasks.first()? {
        TaskId::Audio(_) => Medium::Sound,
        _ => Medium::Picture,
    };
    Some((medium, tasks))
}

/// The renditions that a plain MP4 named after `rendition` has as its tracks; `None` when the plan has no such file.
pub(crate) fn tracks_of(plan: &Plan, rendition: &RenditionId) -> Option<Vec<RenditionId>> {
    let wanted = TaskId::Mp4(rendition.clone());
    TaskId::joins_of(plan).find(|task| *task == wanted)?;
    let sound = plan.main_sound().map(|(_, audio)| audio.id.clone()).filter(|sound| sound != rendition);
    Some([rendition.clone()].into_iter().chain(sound).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{device, plan, plan_on};

    #[test]
    fn segments_are_numbered_from_the_chunks_place_in_the_rendition() {
        let plan = plan();
        let firsts = |task| encode(&plan, &task).map(|e| e.renditions.iter().map(|r| r.first_segment).collect::<Vec<_>>());
        assert_eq!(firsts(TaskId::Video(0)), Some(vec![0, 0]));
        assert_eq!(firsts(TaskId::Video(1)), Some(vec![2, 2]));
        assert_eq!(firsts(TaskId::Audio(0)), Some(vec![0]));
    }

    #[test]
    fn a_task_that_the_plan_does_not_have_is_no_work() {
        let plan = plan();
        for task in [TaskId::Video(2), TaskId::Audio(1), TaskId::Probe, TaskId::Pack(RenditionId("v720".to_owned()))] {
            assert_eq!(encode(&plan, &task), None, "{task}");
        }
        assert_eq!(parts_of(&plan, &RenditionId("v999".to_owned())), None);
    }

    #[test]
    fn the_first_rungs_of_a_class_are_made_on_its_device_as_many_as_it_has_sessions() {
        let mut plan = plan_on(Class::Nvenc);
        let video = plan.video.as_mut().expect("a picture");
        let rung = |id: &str, class| Rung { id: RenditionId(id.to_owned()), class, ..video.rungs.first().expect("two").clone() };
        let (free, third) = (rung("v540", Class::Cpu), rung("v144", Class::Nvenc));
        video.rungs.insert(1, free);
        video.rungs.push(third);
        let encode = encode(&plan, &TaskId::Video(0)).expect("a task of the plan");
        let extents = |class| encode.needs(class).iter().map(|need| need.extent).collect::<Vec<_>>();
        assert_eq!(extents(Class::Nvenc), [(1280, 720), (640, 360), (1280, 720)].map(|(w, h)| Extent::of(w, h)));
        assert!(extents(Class::Cpu).is_empty() && extents(Class::Vaapi).is_empty(), "nothing is asked of a device");
        assert_eq!(encode.on_device(), [0; 0]);
        let on = |sessions| encode.clone().on(OnDevice { device: device("/dev/x".as_ref()), sessions });
        assert_eq!([1, 2, 3, 9].map(|sessions| on(sessions).on_device()), [vec![0], vec![0, 2], vec![0, 2, 3], vec![0, 2, 3]]);
        let Order::Video(order) = on(2).order else { panic!("not a picture") };
        assert_eq!(order.device.map(|on| on.sessions), Some(2));
    }

    #[test]
    fn parts_are_joined_where_there_are_files() {
        let with = |layout, mp4| joins_parts(&Plan { layout, mp4, ..plan() });
        assert!(!with(Layout::Segments, Mp4::None));
        for (layout, mp4) in [(Layout::SingleFile, Mp4::None), (Layout::Both, Mp4::None), (Layout::Segments, Mp4::EachRung)] {
            assert!(with(layout, mp4), "{layout:?} {mp4:?}");
        }
    }

    #[test]
    fn a_rendition_of_the_picture_is_joined_from_every_chunk_and_one_of_the_sound_from_one_task() {
        let plan = plan();
        let parts = |id: &str| parts_of(&plan, &RenditionId(id.to_owned()));
        assert_eq!(parts("v720"), Some((Medium::Picture, vec![TaskId::Video(0), TaskId::Video(1)])));
        assert_eq!(parts("a0"), Some((Medium::Sound, vec![TaskId::Audio(0)])));
    }
}
