//! What one picture costs: drawing, converting, encoding. Prints milliseconds per picture.
//!
//! `cargo run -p fanlight-device-sim --example screen_cost -- [WIDTHxHEIGHT] [FPS] [PNG]`

use std::time::{Duration, Instant};

use fanlight_device_sim::encode::{EncoderSettings, VideoEncoder};
use fanlight_device_sim::screen::model::TouchAction;
use fanlight_device_sim::screen::strip::Stamp;
use fanlight_device_sim::screen::{Moment, Renderer, ScreenModel};

#[allow(clippy::print_stdout, reason = "a measuring tool prints its result")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let size = args.first().map_or("720x1280", String::as_str);
    let (width, height) = size.split_once('x').ok_or("size is WIDTHxHEIGHT")?;
    let (width, height): (u32, u32) = (width.parse()?, height.parse()?);
    let fps: u32 = args.get(1).map_or(Ok(60), |n| n.parse())?;
    let mut model = ScreenModel::new((width, height));
    let mut renderer = Renderer::new(width, height, "Fanlight Phone")?;
    #[allow(clippy::cast_precision_loss, reason = "a frame rate")]
    let settings = EncoderSettings { fps: fps as f32, bitrate_bps: 4_000_000 };
    let mut encoder = VideoEncoder::new(settings)?;
    let mut spent = [Duration::ZERO; 3];
    let (mut bytes, mut key_bytes) = (0, 0);
    let pictures = fps * 10;
    for n in 0..pictures {
        let us = 1_750_000_000_000_000 + u64::from(n) * 1_000_000 / u64::from(fps);
        // A finger goes round, as in a game.
        let (sin, cos) =
            (f32::from(u16::try_from(n % 120)?) / 120.0 * std::f32::consts::TAU).sin_cos();
        let action = if n == 0 { TouchAction::Down } else { TouchAction::Move };
        model.touch(action, 0, 0.5 + sin * 0.3, 0.6 + cos * 0.2, us);
        let stamp = Stamp::new(n, us / 1000, 1);
        let start = Instant::now();
        renderer.draw(&model, &Moment { now_us: us, clock_us: us, stamp });
        let drawn = Instant::now();
        let picture = renderer.i420();
        let converted = Instant::now();
        let unit = encoder.encode(picture, u64::from(n) * 1_000_000 / u64::from(fps), n == 0)?;
        let encoded = Instant::now();
        if n > 0 {
            spent[0] += drawn - start;
            spent[1] += converted - drawn;
            spent[2] += encoded - converted;
            bytes += unit.data.len();
        } else {
            println!(
                "first picture: draw {:?}, convert {:?}, encode {:?}",
                drawn - start,
                converted - drawn,
                encoded - converted
            );
            key_bytes = unit.data.len();
        }
    }
    let per = |d: Duration| d.as_secs_f64() * 1000.0 / f64::from(pictures - 1);
    println!(
        "{width}x{height}: draw {:.3} ms, convert {:.3} ms, encode {:.3} ms a picture",
        per(spent[0]),
        per(spent[1]),
        per(spent[2])
    );
    println!(
        "at {fps} fps: {:.1} % of a core, keyframe {key_bytes} bytes, then {} bit/s",
        spent.iter().map(|d| per(*d)).sum::<f64>() * f64::from(fps) / 10.0,
        bytes * 8 / 10
    );
    if let Some(path) = args.get(2) {
        let file = std::fs::File::create(path)?;
        let mut png = png::Encoder::new(file, width, height);
        png.set_color(png::ColorType::Rgba);
        png.write_header()?.write_image_data(renderer.rgba())?;
    }
    Ok(())
}
