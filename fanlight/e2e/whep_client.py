"""A WHEP viewer made of aiortc alone: a client that this project did not write.

Usage: whep_client.py decode URL TOKEN FRAMES   joins, decodes FRAMES frames, leaves
       whep_client.py strips URL TOKEN FRAMES   the same, and reads the strip in each
       whep_client.py churn URL TOKEN COUNT     joins and leaves COUNT times, a frame each
Prints one JSON object; exits non-zero when a step fails.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urljoin

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription


def strip(frame):
    """The number that the simulated device drew into this picture; None: it cannot be read."""
    plane = frame.planes[0]
    luma, side = memoryview(plane), frame.width / 48
    bits = 0
    for i in range(96):
        x, y = int((i % 48 + 0.5) * side), int((i // 48 + 0.5) * side)
        bits = bits << 1 | (luma[y * plane.line_size + x] > 128)
    data = bits.to_bytes(12, "big")
    crc = 0
    for byte in data[:10]:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1 & 0xFF
    if data[0] != 0xA5 or data[11] != 0x5A or data[10] != crc:
        return None
    return int.from_bytes(data[1:4], "big")


async def watch(http, url, token, frames, each=lambda frame: None):
    """Joins, decodes `frames` frames and gives them to `each`, leaves; returns (width, height,
    seconds to the first frame)."""
    pc = RTCPeerConnection()
    pc.addTransceiver("video", direction="recvonly")
    done = asyncio.get_running_loop().create_future()
    started = time.monotonic()

    @pc.on("track")
    def on_track(track):
        async def run():
            first = None
            for _ in range(frames):
                frame = await track.recv()
                first = first or time.monotonic() - started
                each(frame)
            return frame.width, frame.height, first

        task = asyncio.ensure_future(run())
        task.add_done_callback(
            lambda t: done.done() or (done.set_exception(t.exception()) if t.exception() else done.set_result(t.result()))
        )

    session = None
    headers = {"Authorization": f"Bearer {token}"}
    try:
        await pc.setLocalDescription(await pc.createOffer())
        async with http.post(
            url, data=pc.localDescription.sdp, headers={**headers, "Content-Type": "application/sdp"}
        ) as r:
            body = await r.text()
            assert r.status == 201, f"{r.status}: {body}"
            assert r.headers["Content-Type"].startswith("application/sdp"), r.headers
            session = urljoin(url, r.headers["Location"])
        await pc.setRemoteDescription(RTCSessionDescription(sdp=body, type="answer"))
        return await asyncio.wait_for(done, 30 + frames / 10)
    finally:
        if session:
            async with http.delete(session, headers=headers) as r:
                assert r.status == 200, r.status
        await pc.close()


async def main():
    mode, url, token, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    async with aiohttp.ClientSession() as http:
        if mode == "decode":
            w, h, first = await watch(http, url, token, count)
            print(json.dumps({"frames": count, "width": w, "height": h, "first_frame_s": round(first, 3)}))
        elif mode == "strips":
            numbers = []
            _, _, first = await watch(http, url, token, count, lambda frame: numbers.append(strip(frame)))
            read = [n for n in numbers if n is not None]
            print(json.dumps({
                "frames": count,
                "unreadable": numbers.count(None),
                "not_increasing": sum(a >= b for a, b in zip(read, read[1:])),
                "drawn": read[-1] - read[0] + 1 if read else 0,
                "first_frame_s": round(first, 3),
            }))
        else:
            times = [(await watch(http, url, token, 1))[2] for _ in range(count)]
            times.sort()
            print(json.dumps({"joins": count, "first_frame_s_p50": round(times[len(times) // 2], 3)}))


asyncio.run(main())
