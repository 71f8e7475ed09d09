//! The list of all volumes, encoded volume by volume. What a volume is shown as is some sixty small allocations: built for all ten thousand first, encoded then, and freed at the end, they
//! were a third of the time of a list, and the process kept their memory. Freed before the next volume is built they are the same few all the time.
//!
//! So this one method has a codec of its own. On the wire the answer is what it was: a repeated field is its elements one after the other.
use super::view::Viewer;
use super::{ANSWER_BYTES_MAX, REQUEST_BYTES_MAX, Services};
use crate::error::OpError;
use bytes::BufMut;
use keelblock_api::openstorage::{
    SdkVolumeInspectResponse, SdkVolumeInspectWithFiltersRequest as ListRequest,
};
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
/// Volumes that are built without letting others go on.
const AT_ONCE: usize = 64;

/// An answer, as it is sent.
#[derive(Debug, Default)]
pub struct Listed(Vec<u8>);

impl Listed {
    /// One more.
    fn add(&mut self, volume: &SdkVolumeInspectResponse) {
        prost::encoding::message::encode(VOLUMES, volume, &mut self.0);
    }

    /// The bytes of the message.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Services {
    /// Volumes and snapshots with all that is known of them.
    pub(super) async fn listed(&self, request: ListRequest) -> Result<Listed, OpError> {
        let selected = self.select(request.try_into()?).await?;
        let viewer = Viewer::new(self.node(), &selected.shown()).await?;
        let mut listed = Listed::default();
        for volumes in selected.volumes.chunks(AT_ONCE) {
            for volume in volumes {
                listed.add(&viewer.response(&volume.record));
            }
            tokio::task::yield_now().await;
        }
        for snapshots in selected.snapshots.chunks(AT_ONCE) {
            for snapshot in snapshots {
                listed.add(&viewer.snapshot(&snapshot.record));
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
            let listed = services.listed(request.into_inner()).await?;
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
        into.reserve(item.0.len());
        into.put_slice(&item.0);
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
    use keelblock_api::openstorage::{Volume, open_storage_volume_server};
    use prost::Message;

    #[test]
    fn an_answer_is_the_same_encoded_at_once_or_volume_by_volume() {
        let volume = |n: usize| SdkVolumeInspectResponse {
            volume: (n > 0).then(|| Volume {
                id: "x".repeat(n),
                ..Default::default()
            }),
            name: format!("v{n}"),
            labels: Default::default(),
        };
        // Lengths of one, two and three bytes.
        let volumes = vec![volume(0), volume(1), volume(200), volume(20_000)];
        let mut listed = Listed::default();
        volumes.iter().for_each(|v| listed.add(v));
        let at_once = ListResponse { volumes };
        assert_eq!(listed.bytes(), at_once.encode_to_vec());
        assert!(Listed::default().bytes().is_empty());
        let service = open_storage_volume_server::SERVICE_NAME;
        assert_eq!(PATH, format!("/{service}/InspectWithFilters"));
    }
}
