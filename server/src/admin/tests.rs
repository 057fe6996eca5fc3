use super::*;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tower::ServiceExt as _;

async fn ask(stage: &Stage, path: &str) -> (StatusCode, String) {
    let (_sender, receiver) = watch::channel(stage.clone());
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = routes(receiver).oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn health_and_readiness_follow_the_stage() {
    let has_leader = Arc::new(AtomicBool::new(true));
    let readiness = {
        let has_leader = Arc::clone(&has_leader);
        Readiness::new(move || has_leader.load(Ordering::Relaxed))
    };
    let serving = Stage::Serving(Served { readiness, metrics: Metrics::for_tests() });
    let rows = [
        (&Stage::Starting, true, 500, "not healthy", 500, r#"{"is_healthy":false,"is_ready":false}"#, 503),
        (&serving, true, 200, "healthy", 200, r#"{"is_healthy":true,"is_ready":true}"#, 200),
        (&serving, false, 200, "healthy", 500, r#"{"is_healthy":true,"is_ready":false}"#, 200),
        (&Stage::Stopping, true, 200, "healthy", 500, r#"{"is_healthy":true,"is_ready":false}"#, 503),
        (&Stage::Failed, true, 500, "not healthy", 500, r#"{"is_healthy":false,"is_ready":false}"#, 503),
    ];
    for (stage, leader, health, said, ready, body, metrics) in rows {
        has_leader.store(leader, Ordering::Relaxed);
        let (status, text) = ask(stage, "/health").await;
        assert_eq!((status.as_u16(), text.as_str()), (health, said));
        let (status, text) = ask(stage, "/ready").await;
        assert_eq!((status.as_u16(), text.as_str()), (ready, body));
        assert_eq!(ask(stage, "/metrics").await.0.as_u16(), metrics);
    }
    let (_, text) = ask(&serving, "/metrics").await;
    assert!(text.contains("kubemq_build_info") && text.contains("process_resident_memory_bytes"), "{text}");
}

#[tokio::test]
async fn other_paths_do_not_exist() {
    assert_eq!(ask(&Stage::Starting, "/").await.0, StatusCode::NOT_FOUND);
}
