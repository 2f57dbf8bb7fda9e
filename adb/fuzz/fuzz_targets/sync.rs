//! The sync protocol with any bytes from the other end: the device's server against a host, the
//! host's client against a device. Both end, and answers are bounded by what was asked.
#![no_main]

use fanlight_adb::{
    FeatureSet, MemoryStore, SyncClient,
    service::{sync::RequestDecoder, sync_device},
};
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use tokio::io::{empty, join, sink};

fuzz_target!(|data: &[u8]| {
    let [selector, data @ ..] = data else { return };
    match selector % 6 {
        0 => {
            let mut decoder = RequestDecoder::new();
            decoder.buffer().extend_from_slice(data);
            while let Ok(Some(_)) = decoder.next_request() {}
        }
        1 => {
            let store = MemoryStore::new(100_000);
            let mut answers = Vec::new();
            let _ = block_on(sync_device::serve(join(data, &mut answers), &store));
            // The store holds at most 100 kB, and each request of 8 bytes may ask for it once.
            assert!(answers.len() <= (data.len() / 8 + 1) * 110_000);
        }
        selector => {
            let features = FeatureSet::parse(if data.len() % 2 == 0 { "stat_v2" } else { "" });
            let mut client = SyncClient::new(join(data, sink()), &features);
            match selector {
                2 => drop(block_on(client.stat("/x"))),
                3 => drop(block_on(client.list("/x"))),
                4 => {
                    let mut file = Vec::new();
                    if let Ok(n) = block_on(client.pull("/x", &mut file, 50_000)) {
                        assert_eq!(n, file.len() as u64);
                    }
                    assert!(file.len() <= 50_000);
                }
                _ => drop(block_on(client.push("/x", 0o644, 0, empty()))),
            }
        }
    }
});
