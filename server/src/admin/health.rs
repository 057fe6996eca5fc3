//! `/health`: restart me if this fails. `/ready`: send me clients only while this succeeds.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{Shared, Stage};

/// Whether a serving node can carry out calls at this moment.
#[derive(Clone)]
pub struct Readiness(Arc<dyn Fn() -> bool + Send + Sync>);

impl Readiness {
    /// Returns the readiness that `has_leader` tells.
    #[must_use]
    pub fn new(has_leader: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(has_leader))
    }

    fn is_ready(&self) -> bool {
        (self.0)()
    }
}

/// Returns whether the node is healthy, and whether it is ready.
fn judge(stage: &Stage) -> (bool, bool) {
    match stage {
        Stage::Starting | Stage::Failed => (false, false),
        Stage::Serving(served) => (true, served.readiness.is_ready()),
        Stage::Stopping => (true, false),
    }
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }
}

pub(super) async fn health(State(shared): State<Shared>) -> Response {
    let (healthy, _) = judge(&shared.stage());
    (status(healthy), if healthy { "healthy" } else { "not healthy" }).into_response()
}

pub(super) async fn ready(State(shared): State<Shared>) -> Response {
    let (healthy, ready) = judge(&shared.stage());
    let body = format!("{{\"is_healthy\":{healthy},\"is_ready\":{ready}}}");
    (status(ready), [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
