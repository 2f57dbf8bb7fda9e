//! What stands between a viewer that speaks UDP and the router's TCP: for the router it is a viewer
//! by ICE-TCP. Written from RFC 4571, not from the router.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    task::JoinHandle,
};

/// A running bridge.
pub struct Bridge {
    task: JoinHandle<()>,
}

impl Bridge {
    /// Connects to the answer's TCP candidate; the answer that it gives names the bridge alone.
    pub async fn connect(answer: &str) -> (Self, String) {
        let to = tcp_candidate(answer).expect("a TCP candidate in the answer");
        let tcp = TcpStream::connect(to).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        let candidate =
            format!("a=candidate:1 1 udp 2130706431 {} {} typ host", address.ip(), address.port());
        let mut told = false;
        let lines = answer.lines().filter_map(|line| match line.starts_with("a=candidate:") {
            true if told => None,
            true => {
                told = true;
                Some(candidate.as_str())
            }
            false => Some(line),
        });
        let answer = lines.flat_map(|line| [line, "\r\n"]).collect();
        (Self { task: tokio::spawn(run(tcp, udp)) }, answer)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `candidate:<foundation> <component> tcp <priority> <address> <port> typ host tcptype passive`.
fn tcp_candidate(answer: &str) -> Option<SocketAddr> {
    let mut lines = answer.lines().filter_map(|line| line.strip_prefix("a=candidate:"));
    let words: Vec<&str> = lines
        .find(|line| line.contains("tcptype passive") && line.contains("127.0.0.1"))?
        .split(' ')
        .collect();
    assert!(words[2].eq_ignore_ascii_case("tcp"), "{words:?}");
    Some(SocketAddr::new(words[4].parse().ok()?, words[5].parse().ok()?))
}

async fn run(tcp: TcpStream, udp: UdpSocket) {
    let (mut from_router, mut to_router) = tcp.into_split();
    let mut viewer: Option<SocketAddr> = None;
    let (mut datagram, mut stream, mut chunk) = (vec![0; 65_536], Vec::new(), vec![0; 65_536]);
    loop {
        tokio::select! {
            got = udp.recv_from(&mut datagram) => {
                let Ok((len, from)) = got else { return };
                viewer = Some(from);
                let mut frame = u16::try_from(len).unwrap().to_be_bytes().to_vec();
                frame.extend_from_slice(&datagram[..len]);
                if to_router.write_all(&frame).await.is_err() {
                    return;
                }
            }
            got = from_router.read(&mut chunk) => {
                let Ok(len @ 1..) = got else { return };
                stream.extend_from_slice(&chunk[..len]);
                while let Some((length, rest)) = stream.split_first_chunk::<2>() {
                    let len = usize::from(u16::from_be_bytes(*length));
                    let Some(frame) = rest.get(..len) else { break };
                    if let Some(viewer) = viewer {
                        udp.send_to(frame, viewer).await.unwrap();
                    }
                    stream.drain(..2 + len);
                }
            }
        }
    }
}
