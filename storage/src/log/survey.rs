//! Reading a segment although some of it is damaged: what is whole is given out, what is not is named, and reading goes
//! on behind it.
//!
//! For those who look after files and for those who save what can be saved. An open does not use this: it goes on from
//! nothing that it cannot vouch for.

use bytes::Bytes;

use super::frame::{FRAME_FIRST_BYTE, FRAME_HEAD, Frame, GROUP_HEAD, Group};
use super::scan::{Window, look_behind};
use crate::Error;

/// A place between two groups, and the sequence of the next one where that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) offset: u64,
    pub(crate) sequence: Option<u64>,
}

/// What a survey meets, in the order of the file.
#[derive(Debug)]
pub(crate) enum Met {
    /// A write group begins at this offset.
    Group(u64),
    /// A frame that is whole, but for the parts of an entry, which have checksums of their own.
    Frame(u64, Frame),
    /// Something that is not what was written.
    Bad {
        offset: u64,
        what: String,
        /// The entry that it was, when that is known, and its part, when it is only that.
        lost: Option<(u64, Option<u16>)>,
    },
}

/// How far a survey came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Came {
    /// It may go on from here.
    To(Mark),
    /// There are no more groups. Other bytes than zero may lie behind them.
    ToTheEnd { at: Mark, dirty: bool },
}

/// Reads the groups of segment `number` from `from` on, up to `limit` and about `budget` bytes of them.
///
/// # Errors
///
/// What the disk says. Damage is told to `each`.
pub(crate) async fn survey(
    window: &mut Window<'_>,
    number: u64,
    from: Mark,
    (limit, budget): (u64, u64),
    mut each: impl FnMut(Met),
) -> Result<Came, Error> {
    let mut at = from;
    while at.offset < limit {
        if at.offset - from.offset >= budget {
            return Ok(Came::To(at));
        }
        let head = window.get(at.offset, GROUP_HEAD).await?;
        let group = Group::decode(&head, number, at.offset);
        let room = window.len.saturating_sub(at.offset + GROUP_HEAD as u64);
        let Some(group) = group.filter(|group| u64::from(group.length) <= room) else {
            match find_next(window, number, at, limit, &mut each).await? {
                Ok(next) => at = next,
                Err(dirty) => return Ok(Came::ToTheEnd { at, dirty }),
            }
            continue;
        };
        if at.sequence.is_some_and(|sequence| sequence != group.sequence) {
            let what = "a write group has another number than its place".to_owned();
            each(Met::Bad { offset: at.offset, what, lost: None });
        }
        each(Met::Group(at.offset));
        let start = at.offset + GROUP_HEAD as u64;
        let body = window.get(start, group.length as usize).await?;
        frames(&body, start, &mut each);
        at = Mark { offset: start + u64::from(group.length), sequence: Some(group.sequence + 1) };
    }
    Ok(Came::ToTheEnd { at, dirty: false })
}

/// Finds the group behind one whose head is damaged, and gives out what frames lie before it. Where there is none the
/// groups end: then it returns whether bytes other than zero lie there.
async fn find_next(
    window: &mut Window<'_>,
    number: u64,
    at: Mark,
    limit: u64,
    each: &mut impl FnMut(Met),
) -> Result<Result<Mark, bool>, Error> {
    let rest = look_behind(window, number, at.offset, at.sequence.unwrap_or(0)).await?;
    let (next, what) = match rest.group {
        Some(later) => {
            (later, format!("no write group begins there, although byte {later} was written after it had been flushed"))
        }
        // The file is known to go on up to its limit.
        None if limit < window.len => (limit, "no write group begins there".to_owned()),
        None => return Ok(Err(rest.dirty)),
    };
    each(Met::Bad { offset: at.offset, what, lost: None });
    frames_between(window, at.offset, next, each).await?;
    Ok(Ok(Mark { offset: next, sequence: None }))
}

/// Gives out the frames that lie somewhere between two places.
pub(crate) async fn frames_between(
    window: &mut Window<'_>,
    start: u64,
    end: u64,
    each: &mut impl FnMut(Met),
) -> Result<(), Error> {
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    let bytes = window.get(start, length).await?;
    let mut place = 0;
    while let Some((skipped, frame)) = find_frame(&bytes, place) {
        place = skipped + FRAME_HEAD + frame.payload.len();
        give(start + skipped as u64, frame, each);
    }
    Ok(())
}

/// Gives out the frames of a group, and names what lies between them.
fn frames(body: &Bytes, start: u64, each: &mut impl FnMut(Met)) {
    let mut at = 0;
    while at < body.len() {
        match Frame::decode(&body.slice(at..)) {
            Ok(frame) => {
                let size = FRAME_HEAD + frame.payload.len();
                give(start + at as u64, frame, each);
                at += size;
            }
            Err(what) => {
                each(Met::Bad { offset: start + at as u64, what: what.to_owned(), lost: None });
                at = find_frame(body, at + 1).map_or(body.len(), |(next, _)| next);
            }
        }
    }
}

fn give(offset: u64, frame: Frame, each: &mut impl FnMut(Met)) {
    let index = frame.head.id.index;
    match frame.to_entry() {
        Ok(None) => {}
        Ok(Some(entry)) => {
            let bad = (0..entry.parts.count()).filter(|part| entry.parts.get_checked(*part).is_none());
            for part in bad {
                let what = format!("the checksum of part {part} of entry {index} does not fit");
                each(Met::Bad { offset, what, lost: Some((index, Some(part))) });
            }
        }
        Err(error) => {
            let what = format!("entry {index}: {error}");
            return each(Met::Bad { offset, what, lost: Some((index, None)) });
        }
    }
    each(Met::Frame(offset, frame));
}

/// Finds the next frame that is whole. A body that itself holds frames of a log could be taken for some: that is why only
/// what lies between damage and the next group is searched.
fn find_frame(bytes: &Bytes, from: usize) -> Option<(usize, Frame)> {
    let mut from = from;
    loop {
        let place = from + bytes.get(from..)?.iter().position(|byte| *byte == FRAME_FIRST_BYTE)?;
        if let Ok(frame) = Frame::decode(&bytes.slice(place..)) {
            return Some((place, frame));
        }
        from = place + 1;
    }
}
