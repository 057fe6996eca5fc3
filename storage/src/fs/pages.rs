//! The content of a file in memory, in pages that copies share.

use std::sync::Arc;

use bytes::Bytes;

const PAGE: usize = 4096;

/// Bytes in shared pages, so that copies of a disk are cheap. A missing page reads as zeros.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
    len: u64,
}

impl Pages {
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Bytes {
        let len = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let (page, start) = place(offset + done as u64);
            let count = (PAGE - start).min(len - done);
            if let Some(page) = &self.pages[page] {
                bytes[done..done + count].copy_from_slice(&page[start..start + count]);
            }
            done += count;
        }
        bytes.into()
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.grow(offset + bytes.len() as u64);
        let mut done = 0;
        while done < bytes.len() {
            let (page, start) = place(offset + done as u64);
            let count = (PAGE - start).min(bytes.len() - done);
            let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[start..start + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    pub(crate) fn grow(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.pages.resize(place(len + PAGE as u64 - 1).0, None);
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (page, start) = place(len);
            if start > 0
                && let Some(page) = &mut self.pages[page]
            {
                Arc::make_mut(page)[start..].fill(0);
            }
            self.len = len;
            self.pages.truncate(place(len + PAGE as u64 - 1).0);
        } else {
            self.grow(len);
        }
    }
}

fn place(offset: u64) -> (usize, usize) {
    let page = usize::try_from(offset / PAGE as u64).unwrap_or(usize::MAX);
    (page, usize::try_from(offset % PAGE as u64).unwrap_or(0))
}
