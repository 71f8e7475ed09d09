//! The Connect command: from capsule and data to a [`ConnectRequest`] (NVMe Base 2.1, 6.3).

use std::net::SocketAddr;

use keelblock_nvme::Sqe;
use keelblock_nvme::fabrics::{CONNECT_DATA_LEN, ConnectCommand, ConnectData};

use super::seam::{ConnectError, ConnectRequest, Reply, StatusField};
use super::status;

/// Reads a Connect command whose data is in hand.
///
/// # Errors
/// What to complete it with.
pub fn parse(
    sqe: &Sqe,
    data: &[u8],
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<ConnectRequest, ConnectError> {
    let plain = |status| ConnectError {
        status,
        ipo: 0,
        in_data: false,
    };
    let command = ConnectCommand::parse(sqe);
    if command.recfmt != 0 {
        return Err(plain(status::CONNECT_FORMAT));
    }
    let Some(data) = data
        .first_chunk::<CONNECT_DATA_LEN>()
        .filter(|_| data.len() == CONNECT_DATA_LEN)
    else {
        return Err(plain(status::SGL_LENGTH));
    };
    let data = ConnectData::parse(data).map_err(|e| ConnectError {
        status: status::CONNECT_PARAMETERS,
        ipo: e.offset,
        in_data: true,
    })?;
    Ok(ConnectRequest {
        subnqn: data.subnqn,
        hostnqn: data.hostnqn,
        hostid: data.hostid,
        cntlid: data.cntlid,
        qid: command.qid,
        sqsize: command.sqsize,
        kato_ms: command.kato_ms,
        cattr: command.cattr,
        peer,
        local,
    })
}

/// The completion of a refused Connect: IPO in dword 0, IATTR in its bit 16.
pub fn refusal(error: ConnectError) -> Reply {
    Reply {
        dw0: u32::from(error.ipo) | u32::from(error.in_data) << 16,
        status: error.status,
        ..Reply::default()
    }
}

/// The completion of a granted Connect.
pub fn granted(cntlid: u16) -> Reply {
    Reply {
        dw0: u32::from(cntlid),
        status: StatusField::SUCCESS,
        ..Reply::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4420);

    fn valid() -> (Sqe, Vec<u8>) {
        let sqe = ConnectCommand {
            recfmt: 0,
            qid: 3,
            sqsize: 127,
            cattr: 4,
            kato_ms: 15_000,
        }
        .encode();
        let data = ConnectData {
            hostid: [7; 16],
            cntlid: 9,
            subnqn: "nqn.2024-01.test:sub".into(),
            hostnqn: "nqn.2024-01.test:host".into(),
        };
        (sqe, data.encode().unwrap().to_vec())
    }

    #[test]
    fn fields() {
        let (sqe, data) = valid();
        let r = parse(&sqe, &data, HERE, HERE).unwrap();
        assert_eq!(
            (r.qid, r.sqsize, r.cattr, r.kato_ms, r.cntlid),
            (3, 127, 4, 15_000, 9)
        );
        assert_eq!(
            (r.subnqn.as_str(), r.hostnqn.as_str()),
            ("nqn.2024-01.test:sub", "nqn.2024-01.test:host")
        );
    }

    #[test]
    fn refusals_name_the_field() {
        let (sqe, data) = valid();
        let refused = |sqe: &Sqe, data: &[u8]| parse(sqe, data, HERE, HERE).unwrap_err();
        let mut format = sqe;
        format.0[40] = 1;
        assert_eq!(refused(&format, &data).status, status::CONNECT_FORMAT);
        for len in [0, 16, 1020, 1023] {
            assert_eq!(
                refused(&sqe, &data[..len]).status,
                status::SGL_LENGTH,
                "{len} bytes"
            );
        }
        assert_eq!(
            refused(&sqe, &[data.as_slice(), &[0]].concat()).status,
            status::SGL_LENGTH
        );
        for (at, ipo) in [(256, 256), (512, 512)] {
            let mut empty = data.clone();
            empty[at] = 0;
            let e = refused(&sqe, &empty);
            assert_eq!(
                (e.status, e.ipo, e.in_data),
                (status::CONNECT_PARAMETERS, ipo, true)
            );
            let mut endless = data.clone();
            endless[at..at + 256].fill(b'n');
            assert_eq!(refused(&sqe, &endless).ipo, ipo);
            assert_eq!(refusal(e).dw0, u32::from(ipo) | 1 << 16);
        }
    }
}
