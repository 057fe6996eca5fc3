//! `/metrics`: the node's numbers in Prometheus' text format.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{Shared, Stage};

pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.stage() {
        Stage::Serving(served) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (kind, served.metrics.render().await).into_response()
        }
        // A scraper that is told nothing keeps what it has; one that is told zeros draws them.
        Stage::Starting | Stage::Stopping | Stage::Failed => {
            (StatusCode::SERVICE_UNAVAILABLE, "there are no numbers while the node does not serve").into_response()
        }
    }
}
