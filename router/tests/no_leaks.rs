//! Many joins and leaves, each of another kind, leave nothing behind: tables, sockets, tasks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{
    World, eventually,
    publisher::live_stream,
    viewer::{self, Seen, Viewer},
};

const JOINS: u32 = 200;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[tokio::test]
async fn two_hundred_joins_and_leaves_leave_nothing_behind() {
    let world = World::with(|cfg| cfg.shards = 2).await;
    let _publisher = live_stream(&world, 30).await;
    // The first one warms pools (blocking threads, HTTP connections).
    leave_in_one_way(&world, 0).await;
    eventually("empty", || world.router.census().sessions == [0; 3]).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (files, tasks_before, threads_before) = (open_files(), tasks(), threads());

    for number in 1..=JOINS {
        leave_in_one_way(&world, number).await;
    }
    eventually("the tables are empty", || world.router.census().sessions == [0; 3]).await;
    eventually("the shards are empty", || world.router.census().shard_viewers == 0).await;
    assert_eq!(world.router.census().streams, 1);
    eventually("the tasks are gone", || tasks() <= tasks_before).await;
    // One more of the HTTP client's pooled connections may be open, both ends of it.
    eventually("the files are closed", || open_files() <= files + 2).await;
    // Threads for parsing come and go; they are bounded by the limit on parsing.
    assert!(threads() <= threads_before + 16, "{} threads", threads());
    world.end().await;
}

async fn leave_in_one_way(world: &World, number: u32) {
    let token = world.token("pixel", &format!("v{number}"));
    match number % 4 {
        // By DELETE.
        0 => {
            let mut viewer = Viewer::join(world, "pixel", &token).await;
            viewer.until(&Seen::Connected).await;
            let gone = world.http.delete(&viewer.session_url).bearer_auth(&token);
            assert_eq!(gone.send().await.unwrap().status(), 200);
            viewer.until(&Seen::Closed).await;
        }
        // By closing DTLS.
        1 => {
            let mut viewer = Viewer::join(world, "pixel", &token).await;
            viewer.until(&Seen::ChannelOpen("input".into())).await;
            viewer.close().await;
        }
        // By DELETE before anything was sent over UDP.
        2 => {
            let offer = viewer::offer().await.sdp;
            let joined = world.post("pixel", &token, offer).send().await.unwrap();
            let url = world.url(joined.headers()["location"].to_str().unwrap());
            let gone = world.http.delete(url).bearer_auth(&token).send().await.unwrap();
            assert_eq!(gone.status(), 200);
        }
        // By not being taken at all.
        _ => {
            let offer = viewer::offer().await.sdp.replace("H264/90000", "X264/90000");
            let refused = world.post("pixel", &token, offer).send().await.unwrap();
            assert_eq!(refused.status(), 406);
        }
    }
}
