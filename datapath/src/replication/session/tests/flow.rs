//! What is sent arrives once, in order, whole, in both directions at a time, however the network cuts it up.

use super::super::rig::{Event, Events, Rig};
use super::*;

#[test]
fn frames_and_data_arrive_in_order_in_both_directions() {
    for seed in 0..12 {
        let rig = Rig::new(seed, 2, 1);
        let service = Rc::new(Takers::default());
        rig.accept(1, |_| service.clone());
        let events = Rc::new(Events::default());
        let link = rig.link((0, 0), 1, events.clone());
        rig.until(SECOND, "a session", || link.session().is_some());
        let mine = Rc::new(Taker::default());
        let channel = open(&link, &mine);
        rig.until(SECOND, "an answer", || mine.count() == 1);
        let theirs = service.last();
        let back = theirs.channel.borrow().clone().unwrap();
        let pump = |node: usize, out: Channel, kinds: [Kind; 2]| {
            let handle = rig.handle(node, 0);
            handle.clone().spawn("pump", async move {
                for i in 0..60_u8 {
                    out.room().await;
                    let sizes = [usize::from(i % 5) + 1, 3, 1];
                    let data = sizes.map(|n| (blocks(&handle, n, i), 0..n * 4096));
                    let body = sizes.map(|n| n as u8);
                    let fill = |to: &mut Vec<u8>| to.extend_from_slice(&body);
                    match i % 4 {
                        0 => out.send(kinds[1], u32::from(i), |to| to.push(i), []),
                        _ => out.send(kinds[0], u32::from(i), fill, data),
                    }
                    .unwrap();
                    if i % 7 == 0 {
                        handle.sleep(Duration::from_micros(50)).await;
                    }
                }
            });
        };
        pump(0, channel.clone(), [Kind::Batch, Kind::Flush]);
        pump(1, back, [Kind::ReadDone, Kind::Ack]);
        rig.until(10 * SECOND, &format!("all of seed {seed}"), || {
            mine.count() == 61 && theirs.count() == 61
        });
        for taker in [&mine, &theirs] {
            for (i, got) in taker.got.borrow()[1..].iter().enumerate() {
                let i = i as u8;
                assert_eq!(got.epoch, u32::from(i), "seed {seed}");
                if i.is_multiple_of(4) {
                    assert_eq!((&got.body, got.data.len()), (&vec![i], 0), "seed {seed}");
                    continue;
                }
                let sizes = [usize::from(i % 5) + 1, 3, 1];
                for (n, piece) in sizes.iter().zip(&got.data) {
                    let want: Vec<u8> = (0..*n)
                        .flat_map(|b| [i.wrapping_add(b as u8); 4096])
                        .collect();
                    assert!(*piece == want, "seed {seed}, frame {i}");
                }
                assert_eq!(got.data.len(), 3, "seed {seed}");
            }
        }
        let used = |node| rig.handle(node, 0).buffers().stats().used;
        assert_eq!((used(0), used(1)), (0, 0), "buffers came back, seed {seed}");
        channel.close(3);
        rig.until(SECOND, "the end of the channel", || {
            let ended = |t: &Taker| *t.ended.borrow() == Some(Ended::Closed);
            ended(&mine) && ended(&theirs)
        });
        let sent = channel.send(Kind::Flush, 3, |out| out.push(1), []);
        assert_eq!(sent, Err(NotSent::Ended));
        assert!(matches!(events.all()[..], [Event::Up(_)]), "seed {seed}");
    }
}

/// The largest frame that there is, in more pieces than one receive takes, with a small one behind it.
#[test]
fn a_mib_of_single_blocks_arrives_in_its_places() {
    for seed in 0..6 {
        let rig = Rig::new(seed, 2, 1);
        let service = Rc::new(Takers::default());
        rig.accept(1, |_| service.clone());
        let link = rig.link((0, 0), 1, Rc::new(Events::default()));
        rig.until(SECOND, "a session", || link.session().is_some());
        let channel = open(&link, &Rc::new(Taker::default()));
        let handle = rig.handle(0, 0);
        let data = (0..=255).map(|p| (blocks(&handle, 1, p), 0..4096));
        let body = [1_u8; 256];
        let sent = channel.send(Kind::Batch, 3, |out| out.extend(body), data);
        assert_eq!(sent, Ok(()));
        let sent = channel.send(Kind::Flush, 3, |out| out.push(1), []);
        assert_eq!(sent, Ok(()));
        rig.until(5 * SECOND, &format!("both, seed {seed}"), || {
            !service.all.borrow().is_empty() && service.last().count() == 3
        });
        let taker = service.last();
        let got = taker.got.borrow();
        assert_eq!(got[1].data.len(), 256, "seed {seed}");
        for (i, piece) in got[1].data.iter().enumerate() {
            assert!(*piece == [i as u8; 4096], "seed {seed}, piece {i}");
        }
        assert_eq!((got[2].kind, &got[2].body), (Kind::Flush, &vec![1]));
    }
}
