//! Whom a change of the table concerns: who is preempted, who is told, who must be gone before it completes.

use super::state::{Notice, NoticeKind, Outcome, Refusal, State};
use crate::nvmf::seam::{HostId, ReservationType};

impl Outcome {
    /// 8.1.24.6. Who is unregistered depends on the reservation that is there and on the victim's key.
    pub(super) fn preempt(
        &mut self,
        before: &State,
        host: HostId,
        victim: u64,
        kind: ReservationType,
    ) -> Result<(), Refusal> {
        let holder_key = before
            .holder
            .and_then(|h| before.registrant(h))
            .map(|r| r.key);
        let takes_all = victim == 0 && before.kind.all_registrants();
        let takes = takes_all || holder_key == Some(victim);
        if victim == 0 && !takes_all {
            return Err(Refusal::InvalidField);
        }
        // A host that takes the reservation keeps its registration, even when it preempts itself.
        let keeps = |h: HostId| takes && h == host;
        let hit = before
            .registrants
            .iter()
            .filter(|r| takes_all || r.key == victim)
            .map(|r| r.host);
        let removed: Vec<HostId> = hit.filter(|h| !keeps(*h)).collect();
        if removed.is_empty() && !takes {
            return Err(Refusal::Conflict);
        }
        self.next.bump();
        self.next.remove(&removed);
        if takes {
            self.next.hold(kind, host);
        }
        self.tell_preempted(before, host);
        Ok(())
    }

    pub(super) fn removed<'a>(&'a self, before: &'a State) -> impl Iterator<Item = HostId> + 'a {
        before
            .registrants
            .iter()
            .map(|r| r.host)
            .filter(|h| self.next.registrant(*h).is_none())
    }

    fn tell_preempted(&mut self, before: &State, by: HostId) {
        let mut notices = Vec::new();
        let reservation_changed =
            (before.kind, before.holder) != (self.next.kind, self.next.holder);
        for host in self.removed(before).filter(|h| *h != by) {
            notices.push(Notice {
                host,
                kind: NoticeKind::RegistrationPreempted,
            });
            if before.holds(host) && reservation_changed {
                notices.push(Notice {
                    host,
                    kind: NoticeKind::ReservationPreempted,
                });
            }
        }
        if before.kind.concerns_registrants() && before.kind != self.next.kind {
            let rest = self
                .next
                .registrants
                .iter()
                .map(|r| r.host)
                .filter(|h| *h != by);
            notices.extend(rest.map(|host| Notice {
                host,
                kind: NoticeKind::ReservationReleased,
            }));
        }
        self.notices = notices;
    }

    /// The reservation that was there is gone: those who had rights by it are told.
    pub(super) fn tell_released(&mut self, before: &State, by: HostId) {
        if before.kind.concerns_registrants() && self.next.kind == ReservationType::None {
            self.tell_others(before, by, NoticeKind::ReservationReleased);
        }
    }

    pub(super) fn tell_others(&mut self, before: &State, by: HostId, kind: NoticeKind) {
        let others = before
            .registrants
            .iter()
            .map(|r| r.host)
            .filter(|h| *h != by);
        self.notices
            .extend(others.map(|host| Notice { host, kind }));
    }
}
