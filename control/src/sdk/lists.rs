//! The list of all volumes, encoded volume by volume. What a volume is shown as is some sixty small allocations: built for all ten thousand first, encoded then, and freed at the end, they
//! were a third of the time of a list, and the process kept their memory. Freed before the next volume is built they are the same few all the time.
//!
//! So this one method has a codec of its own. On the wire the answer is what it was: a repeated field is its elements one after the other.
use super::replicas::runtime_pairs;
use super::view::Viewer;
use super::volumes::Selection;
use super::{ANSWER_BYTES_MAX, REQUEST_BYTES_MAX, Services};
use crate::auth::Caller;
use crate::error::OpError;
use bytes::BufMut;
use keelblock_api::openstorage::{
    SdkVolumeInspectResponse, SdkVolumeInspectWithFiltersRequest as ListRequest,
};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

/// The method.
const PATH: &str = "/openstorage.api.OpenStorageVolume/InspectWithFilters";
/// The field of the answer that has the volumes.
const VOLUMES: u32 = 1;
/// The field of one of those that has the volume.
const VOLUME: u32 = 1;
/// A volume's `runtime_state`, the map in it, and keys and values of that.
const RUNTIME_STATE: u32 = 20;
const PAIRS: u32 = 1;
const KEY: u32 = 1;
const VALUE: u32 = 2;
/// Volumes that are built without letting others go on.
const AT_ONCE: usize = 64;

/// An answer, as it is sent.
#[derive(Debug, Default)]
pub struct Listed {
    bytes: Vec<u8>,
    /// Of the volume that is being added.
    volume: Vec<u8>,
    state: Vec<u8>,
}

/// A field with a length, and as many bytes.
fn put(field: u32, bytes: &[u8], into: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

impl Listed {
    /// One more, with its `runtime_state`, which is not in `shown`: as a message it would be a third of the work, and most of its bytes are names of fields.
    fn add(&mut self, mut shown: SdkVolumeInspectResponse, state: &[(&str, String)]) {
        let Self {
            bytes,
            volume: of_volume,
            state: of_state,
        } = self;
        if let Some(volume) = shown.volume.take_if(|_| !state.is_empty()) {
            of_state.clear();
            for (key, value) in state {
                let of_pair = |text: &str| 1 + encoded_len_varint(text.len() as u64) + text.len();
                encode_key(PAIRS, WireType::LengthDelimited, of_state);
                encode_varint((of_pair(key) + of_pair(value)) as u64, of_state);
                put(KEY, key.as_bytes(), of_state);
                put(VALUE, value.as_bytes(), of_state);
            }
            of_volume.clear();
            volume.encode(of_volume).expect("a Vec grows");
            put(RUNTIME_STATE, of_state, of_volume);
            let volume_len = 1 + encoded_len_varint(of_volume.len() as u64) + of_volume.len();
            encode_key(VOLUMES, WireType::LengthDelimited, bytes);
            encode_varint((volume_len + shown.encoded_len()) as u64, bytes);
            put(VOLUME, of_volume, bytes);
            shown.encode(bytes).expect("a Vec grows");
        } else {
            prost::encoding::message::encode(VOLUMES, &shown, bytes);
        }
    }

    /// The bytes of the message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Services {
    /// Volumes and snapshots with all that is known of them.
    pub(super) async fn listed(
        &self,
        request: ListRequest,
        caller: Caller,
    ) -> Result<Listed, OpError> {
        let selected = self.select(Selection::of_list(request, caller)?).await?;
        let viewer = Viewer::new(self.node(), &selected.shown()).await?;
        let mut listed = Listed::default();
        for volumes in selected.volumes.chunks(AT_ONCE) {
            for volume in volumes {
                let record = &volume.record;
                let set = viewer.set(record.volume_id);
                let state = set.map(|(set, task)| runtime_pairs(set, task));
                let state = state.as_ref().map_or(&[][..], |s| s);
                listed.add(viewer.response_but_runtime(record), state);
            }
            tokio::task::yield_now().await;
        }
        for snapshots in selected.snapshots.chunks(AT_ONCE) {
            for snapshot in snapshots {
                listed.add(viewer.snapshot(&snapshot.record), &[]);
            }
            tokio::task::yield_now().await;
        }
        Ok(listed)
    }
}

/// The service of volumes `inner`, but for this method.
#[derive(Clone)]
pub struct WithLists<S> {
    inner: S,
    services: Services,
}

impl<S> WithLists<S> {
    /// With these services.
    pub fn new(inner: S, services: Services) -> Self {
        Self { inner, services }
    }
}

impl<S: NamedService> NamedService for WithLists<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for WithLists<S>
where
    S: Service<http::Request<B>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != PATH {
            return Box::pin(self.inner.call(request));
        }
        let method = List(self.services.clone());
        Box::pin(async move {
            let limits = (Some(REQUEST_BYTES_MAX), Some(ANSWER_BYTES_MAX));
            let grpc = Grpc::new(ListCodec);
            let mut grpc = grpc.apply_max_message_size_config(limits.0, limits.1);
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct List(Services);

impl UnaryService<ListRequest> for List {
    type Response = Listed;
    type Future = BoxFuture<Response<Listed>, Status>;

    fn call(&mut self, request: Request<ListRequest>) -> Self::Future {
        let services = self.0.clone();
        Box::pin(async move {
            let caller = services.caller(&request)?;
            let listed = services.listed(request.into_inner(), caller).await?;
            Ok(Response::new(listed))
        })
    }
}

#[derive(Debug)]
struct ListCodec;

impl Codec for ListCodec {
    type Encode = Listed;
    type Decode = ListRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for ListCodec {
    type Item = Listed;
    type Error = Status;

    fn encode(&mut self, item: Listed, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.reserve(item.bytes.len());
        into.put_slice(&item.bytes);
        Ok(())
    }
}

impl Decoder for ListCodec {
    type Item = ListRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<ListRequest>, Status> {
        let message = prost::Message::decode(from);
        message
            .map(Some)
            .map_err(|error| Status::internal(format!("the request cannot be read: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::openstorage::SdkVolumeInspectWithFiltersResponse as ListResponse;
    use keelblock_api::openstorage::{RuntimeStateMap, Volume, open_storage_volume_server};

    #[test]
    fn an_answer_is_the_same_encoded_at_once_or_volume_by_volume() {
        let volume = |n: usize| SdkVolumeInspectResponse {
            volume: (n > 0).then(|| Volume {
                id: "x".repeat(n),
                in_trashcan: true,
                ..Default::default()
            }),
            name: format!("v{n}"),
            labels: [("a".to_owned(), "b".repeat(n))].into(),
        };
        // Lengths of one, two and three bytes.
        let (long, pairs) = ("y".repeat(300), |value: &str| {
            vec![
                ("RuntimeState", "clean".to_owned()),
                ("Epoch", value.into()),
            ]
        });
        let all = [
            (0, vec![]),
            (1, vec![]),
            (1, pairs("0.1")),
            (200, pairs(&long)),
            (20_000, vec![]),
            (20_000, pairs("[n1 n2]")),
        ];
        let mut listed = Listed::default();
        let mut volumes = Vec::new();
        for (n, state) in &all {
            listed.add(volume(*n), state);
            let mut whole = volume(*n);
            let runtime_state = state.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
            let runtime_state = runtime_state.collect();
            if let (Some(volume), false) = (&mut whole.volume, state.is_empty()) {
                volume.runtime_state = vec![RuntimeStateMap { runtime_state }];
            }
            volumes.push(whole);
        }
        let read = ListResponse::decode(listed.bytes()).unwrap();
        assert_eq!(read, ListResponse { volumes });
        assert!(Listed::default().bytes().is_empty());
        let service = open_storage_volume_server::SERVICE_NAME;
        assert_eq!(PATH, format!("/{service}/InspectWithFilters"));
    }
}
