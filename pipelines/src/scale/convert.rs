//! A conversion of whole pictures, by the route that their colours need.

use super::colour::{self, Route};
use super::memory::Plane;
use super::tone::Curve;
use super::zimg::{Error, Family, Format, Graph, Sample, UNSPECIFIED, View, ViewMut};

/// Converts pictures of one format to a rung's.
pub enum Converter {
    /// In one go.
    Direct(Graph),
    /// Of the one plane that there is; the colour planes become grey.
    Grey(Graph),
    /// By way of linear light.
    ThroughLight(Box<ThroughLight>),
}

/// To gamma-coded RGB of the rung's size, through a curve, and back.
pub struct ThroughLight {
    to_rgb: Graph,
    /// Red, green and blue.
    rgb: [Plane<f32>; 3],
    curve: Curve,
    from_rgb: Graph,
}

impl Converter {
    /// A conversion, or none where pictures are to be kept as they are; `cropped` as for [`colour::route`].
    ///
    /// # Errors
    /// [`Error::Build`] when zimg has no way from the one format to the other.
    pub fn new(from: Format, to: Format, cropped: bool) -> Result<Option<Self>, Error> {
        // Colours alike on both sides, or else zimg would go through light as well, slowly.
        let flat = |format: Format| Format { transfer: UNSPECIFIED, primaries: UNSPECIFIED, ..format };
        match colour::route(&from, &to, cropped) {
            Route::Keep => Ok(None),
            Route::Direct if from.family == Family::Grey => {
                let luma = Format { family: Family::Grey, subsampling: (0, 0), ..to };
                let from = Format { matrix: to.matrix, ..from };
                Ok(Some(Self::Grey(Graph::new(flat(from), flat(luma))?)))
            }
            Route::Direct => Ok(Some(Self::Direct(Graph::new(flat(from), flat(to))?))),
            Route::ThroughLight(transfer, primaries) => {
                let rgb = Format {
                    family: Family::Rgb,
                    sample: Sample::Float,
                    depth: 32,
                    subsampling: (0, 0),
                    full_range: true,
                    matrix: 0,
                    ..to
                };
                let plane = || Plane::new(to.width as usize, to.height as usize);
                Ok(Some(Self::ThroughLight(Box::new(ThroughLight {
                    to_rgb: Graph::new(flat(from), flat(rgb))?,
                    rgb: [plane(), plane(), plane()],
                    curve: Curve::new(transfer, primaries),
                    from_rgb: Graph::new(flat(rgb), flat(to))?,
                }))))
            }
        }
    }

    /// Converts one picture.
    ///
    /// # Errors
    /// [`Error::Memory`] when a plane is missing, too small or not aligned.
    pub fn convert(&mut self, from: &[View<'_>], to: &mut [ViewMut<'_>]) -> Result<(), Error> {
        match self {
            Self::Grey(graph) => {
                let (luma, colours) = to.split_at_mut(1.min(to.len()));
                graph.process(from, luma)?;
                colours.iter_mut().for_each(|plane| plane.fill(128));
                Ok(())
            }
            Self::Direct(graph) => graph.process(from, to),
            Self::ThroughLight(through) => through.convert(from, to),
        }
    }
}

impl ThroughLight {
    fn convert(&mut self, from: &[View<'_>], to: &mut [ViewMut<'_>]) -> Result<(), Error> {
        self.to_rgb.process(from, &mut self.rgb.each_mut().map(ViewMut::of))?;
        let [red, green, blue] = self.rgb.each_mut().map(Plane::samples_mut);
        self.curve.apply(red, green, blue);
        self.from_rgb.process(&self.rgb.each_ref().map(View::of), to)
    }
}
