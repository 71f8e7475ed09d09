//! Reservation notifications of one controller: log page 80h (NVMe Base 2.1, 5.1.12.1.x 'Reservation Notification').

use super::state::NoticeKind;
use std::collections::VecDeque;

/// Notifications kept until they are read; the oldest is dropped for the one beyond, as the page count then shows.
pub const MAX_NOTICES: usize = 64;
/// Size of the log page.
pub const NOTICE_PAGE_BYTES: usize = 64;

const AT_TYPE: usize = 8;
const AT_AVAILABLE: usize = 9;
const AT_NSID: usize = 12;

/// The pages that wait to be read.
#[derive(Debug, Default)]
pub struct NoticeLog {
    pages: VecDeque<(u64, NoticeKind, u32)>,
    count: u64,
}

impl NoticeLog {
    /// Adds a page.
    pub fn push(&mut self, nsid: u32, kind: NoticeKind) {
        // The count is never zero on a page that says something: zero is the count of an empty log.
        self.count = self.count.wrapping_add(1).max(1);
        if self.pages.len() == MAX_NOTICES {
            self.pages.pop_front();
        }
        self.pages.push_back((self.count, kind, nsid));
    }

    /// The oldest page, or an empty one.
    pub fn page(&self) -> [u8; NOTICE_PAGE_BYTES] {
        let mut b = [0; NOTICE_PAGE_BYTES];
        if let Some((count, kind, nsid)) = self.pages.front() {
            b[..8].copy_from_slice(&count.to_le_bytes());
            b[AT_TYPE] = *kind as u8;
            b[AT_AVAILABLE] = (self.pages.len() - 1) as u8;
            b[AT_NSID..AT_NSID + 4].copy_from_slice(&nsid.to_le_bytes());
        }
        b
    }

    /// The oldest page was read; whether another waits.
    pub fn advance(&mut self) -> bool {
        self.pages.pop_front();
        !self.pages.is_empty()
    }

    /// Forgets everything (controller reset).
    pub fn clear(&mut self) {
        self.pages.clear();
    }
}

const _: () = assert!(MAX_NOTICES <= 256);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_in_order_and_count() {
        let mut log = NoticeLog::default();
        assert_eq!(log.page(), [0; 64]);
        log.push(1, NoticeKind::RegistrationPreempted);
        log.push(0x0203, NoticeKind::ReservationReleased);
        let b = log.page();
        assert_eq!(&b[..16], [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]);
        assert!(log.advance());
        assert_eq!(
            &log.page()[..16],
            [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 2, 0, 0]
        );
        assert!(!log.advance());
        assert_eq!(log.page(), [0; 64]);
    }

    #[test]
    fn the_log_is_bounded_and_a_gap_shows() {
        let mut log = NoticeLog::default();
        (0..MAX_NOTICES + 3).for_each(|_| log.push(1, NoticeKind::ReservationPreempted));
        assert_eq!((log.page()[0], log.page()[9]), (4, 63));
    }
}
