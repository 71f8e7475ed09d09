//! The one check in front of all services, whichever door a call comes through: who is it, and does one of the roles allow the method. What is not known to be allowed
//! is refused.
use super::authenticators::Authenticators;
use super::caller::{Caller, User};
use super::nodes::ISSUER;
use super::roles::GUEST;
use super::rules::Method;
use crate::node::Node;
use crate::records::unix_ms;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use keelblock_api::tokens::unverified_issuer;
use std::sync::Arc;
use tonic::Status;
use tonic::service::Routes;

/// See the module's text.
#[derive(Debug)]
pub struct Door {
    node: Arc<Node>,
    authenticators: Authenticators,
}

impl Door {
    /// In front of the services of a node.
    pub fn new(node: Arc<Node>, authenticators: Authenticators) -> Self {
        Self {
            node,
            authenticators,
        }
    }

    /// The services behind it. They find the [`Caller`] among the extensions of a request.
    pub fn guard(self: Arc<Self>, routes: Routes) -> Routes {
        let router = routes.into_axum_router();
        Routes::from(router.layer(from_fn_with_state(self, check)))
    }

    /// Who calls, at this moment, s since the Unix epoch.
    async fn caller(&self, headers: &HeaderMap, now_s: u64) -> Result<Caller, Status> {
        let Some(token) = token(headers).map_err(Status::unauthenticated)? else {
            return Ok(Caller::Guest);
        };
        let refused = |why: String| {
            tracing::debug!(why, "a token is refused");
            Status::unauthenticated(format!("the token does not count: {why}"))
        };
        if unverified_issuer(token).is_ok_and(|issuer| issuer == ISSUER) {
            let skew_s = self.authenticators.skew_s();
            let node = self.node.node_of(token, now_s, skew_s);
            node.await
                .map_err(|e| refused(format!("{e} (it is another node's)")))?;
            return Ok(Caller::Node);
        }
        let user = self.authenticators.user(token, now_s).map_err(refused)?;
        Ok(Caller::User(Arc::new(user)))
    }

    /// Who calls, if that one may.
    async fn admit(&self, path: &str, headers: &HeaderMap) -> Result<Caller, Status> {
        let caller = self.caller(headers, unix_ms() / 1000).await?;
        let Some(method) = Method::of_path(path) else {
            return Err(Status::unimplemented("there is no such method"));
        };
        let guest = [GUEST.to_owned()];
        let roles = match &caller {
            Caller::Node | Caller::Anybody => return Ok(caller),
            Caller::Guest => guest.as_slice(),
            Caller::User(user) => &user.roles,
        };
        if self.node.roles_allow(roles, &method).await? {
            return Ok(caller);
        }
        tracing::info!(user = caller.name(), %method, "refused: no role allows it");
        Err(denied(&caller, &method))
    }
}

fn denied(caller: &Caller, method: &Method) -> Status {
    let Caller::User(user) = caller else {
        return Status::permission_denied(format!(
            "{method} is not allowed without a token (role {GUEST}): bring one, as `authorization: bearer TOKEN` (keelctl: --token, KEELBLOCK_TOKEN)"
        ));
    };
    let User { name, roles, .. } = &**user;
    let why = match roles.as_slice() {
        [] => "its token has no roles".into(),
        [one] => format!("its role, {one}, does not allow it"),
        all => format!("none of its roles, {}, allows it", all.join(", ")),
    };
    Status::permission_denied(format!(
        "{method} is not allowed to {name}: {why}; ask who administers the cluster for a role that does (`keelctl role list`)"
    ))
}

/// The token of a call; `None`: there is none.
fn token(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err("there is more than one `authorization`: bring one token");
    }
    let wrong = "`authorization` has no token that can be read: write `bearer TOKEN`";
    let text = value.to_str().map_err(|_| wrong)?;
    let (scheme, token) = text.trim().split_once(' ').ok_or(wrong)?;
    match scheme.eq_ignore_ascii_case("bearer") {
        true => Ok(Some(token.trim())),
        false => Err(wrong),
    }
}

async fn check(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    match door.admit(request.uri().path(), request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(status) => status.into_http::<tonic::body::Body>().map(Body::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_header_has_one_token_or_is_refused_and_is_never_taken_for_none() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_bytes(value).unwrap();
                headers.append(header::AUTHORIZATION, value);
            }
            token(&headers).map(|t| t.map(str::to_owned))
        };
        assert_eq!(of(&[]), Ok(None));
        for good in ["bearer a.b.c", "Bearer a.b.c", "BEARER   a.b.c "] {
            assert_eq!(of(&[good.as_bytes()]), Ok(Some("a.b.c".into())), "{good}");
        }
        for bad in ["", "bearer", "basic eDp5", "a.b.c", "bearer\u{fc}"] {
            assert!(of(&[bad.as_bytes()]).is_err(), "{bad}");
        }
        assert!(of(&[b"bearer a.b.c", b"bearer a.b.c"]).is_err());
    }

    #[test]
    fn who_is_refused_hears_why_and_what_to_do() {
        let method = Method::of_path("/openstorage.api.OpenStorageRole/Create").unwrap();
        let user = |roles: &[&str]| {
            Caller::User(Arc::new(User {
                name: "ann".into(),
                roles: roles.iter().map(|r| (*r).to_owned()).collect(),
                groups: Vec::new(),
            }))
        };
        for (caller, says) in [
            (Caller::Guest, "without a token"),
            (user(&[]), "no roles"),
            (user(&["a"]), "its role, a,"),
            (user(&["a", "b"]), "a, b"),
        ] {
            let status = denied(&caller, &method);
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
            let message = status.message();
            assert!(message.contains(says), "{message}");
            assert!(
                message.starts_with("role.create is not allowed"),
                "{message}"
            );
        }
    }
}
