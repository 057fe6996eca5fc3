//! Reading what lies in sealed files once more, past what is kept in memory: whether it still is what was written.
//!
//! Dead or alive, everything in a file is read: that costs one pass over it in order, and needs nothing but the file. It
//! only reads; what is to be done about damage is its caller's business.

use kubemq_runtime::sync::oneshot;

use super::Log;
use super::reader::ReadJob;
use super::scan::Window;
use super::segment::{self, Beginning, HEADER, Header, Purpose};
use super::shared::{Segment, Shared};
use super::survey::{Came, Mark, Met, survey};
use crate::Error;

/// A place in a sealed file from which reading goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubPlace {
    segment: u64,
    mark: Mark,
}

impl ScrubPlace {
    /// Returns the beginning of a segment.
    #[must_use]
    pub const fn start_of(segment: u64) -> Self {
        Self { segment, mark: Mark { offset: HEADER as u64, sequence: None } }
    }
}

/// A piece of a sealed file that was read.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong.
    pub damaged: Vec<ScrubDamage>,
    /// Where the file goes on.
    pub next: Option<ScrubPlace>,
}

/// Something in a sealed file that is not what was written.
#[derive(Clone, Debug)]
pub struct ScrubDamage {
    /// What and where: always [`Error::Damaged`].
    pub error: Error,
    /// Where in its file.
    pub offset: u64,
    /// The entry that it was, when that is known, and its part, when it is only that.
    pub lost: Option<(u64, Option<u16>)>,
}

/// A piece of a file to be read, and where the answer goes.
pub(crate) struct ScrubJob {
    pub(crate) place: ScrubPlace,
    pub(crate) budget: u64,
    pub(crate) reply: oneshot::Sender<Result<Scrubbed, Error>>,
}

impl Log {
    /// Reads about `budget` bytes of a sealed file, from `place` on, and checks them. A file that is gone or not sealed has
    /// nothing to be read.
    ///
    /// # Errors
    ///
    /// What the disk says. Damage is returned, not an error.
    pub async fn scrub(&self, place: ScrubPlace, budget: u64) -> Result<Scrubbed, Error> {
        self.read(|reply| ReadJob::Scrub(ScrubJob { place, budget, reply })).await
    }
}

/// Carries out one job.
pub(crate) async fn scrub(shared: &Shared, place: ScrubPlace, budget: u64) -> Result<Scrubbed, Error> {
    let segment = shared.index.lock().segments.get(&place.segment).filter(|segment| segment.sealed).cloned();
    let Some(Segment { file, path, end, purpose, .. }) = segment else { return Ok(Scrubbed::default()) };
    let mut window = Window::open(&file, &path).await?;
    let mut damaged = Vec::new();
    let bad = |offset, what: &str| {
        let error = Error::Damaged { path: path.clone(), offset, what: what.to_owned() };
        ScrubDamage { error, offset, lost: None }
    };
    if place.mark.offset == HEADER as u64 {
        let header = window.get(0, HEADER).await?;
        if !matches!(Header::decode(&header, place.segment, &path)?, Beginning::Header(_)) {
            damaged.push(bad(0, "the header of the segment is not valid"));
        }
    }
    let came = survey(&mut window, place.segment, place.mark, (end, budget), |met| {
        if let Met::Bad { offset, what, lost } = met {
            damaged.push(ScrubDamage { error: Error::Damaged { path: path.clone(), offset, what }, offset, lost });
        }
    });
    let (at, next) = match came.await? {
        Came::To(mark) => (mark, Some(ScrubPlace { mark, ..place })),
        Came::ToTheEnd { at, .. } => {
            if at.offset < end {
                damaged.push(bad(at.offset, "no write group begins there"));
            }
            (Mark { offset: at.offset.max(end), ..at }, None)
        }
    };
    shared.has_read(place.segment, place.mark.offset..at.offset);
    // A footer may lie before or behind where the groups are said to end.
    if next.is_none() && purpose == Purpose::Log && segment::read_footer(&file, place.segment).await?.is_none() {
        damaged.push(bad(at.offset, "the footer of the segment is damaged"));
    }
    Ok(Scrubbed { bytes: at.offset.saturating_sub(place.mark.offset), damaged, next })
}
