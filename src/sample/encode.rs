//! Encodes images in the formats of the corpus, and generates unusable payloads.
//!
//! About 80 % are JPEG, the rest PNG in seven modes, GIF, WebP and TIFF. Only images without hue become grey or one-bit
//! files, so no format removes the colours that distinguish the scenes.

use super::png::Png;
use super::png::PngMode;
use super::render::FULL;
use super::render::RenderedImage;
use super::render::WIDTH_PX;
use super::rng::SampleRng;
use image::ExtendedColorType;
use image::ImageEncoder;
use image::ImageResult;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::tiff::TiffEncoder;
use image::codecs::webp::WebPEncoder;

/// File format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ImageFormat {
    Jpeg,
    GreyJpeg,
    Png(PngMode),
    Gif,
    WebP,
    Tiff,
}

fn choose_format(image: &RenderedImage, rng: &mut SampleRng) -> ImageFormat {
    let grey = image.scene.is_grey();
    match rng.below(1000) {
        0..810 if grey && rng.chance_percent(25) => ImageFormat::GreyJpeg,
        0..810 => ImageFormat::Jpeg,
        810..940 if grey => match rng.below(4) {
            0 => ImageFormat::Png(PngMode::Grey),
            1 => ImageFormat::Png(PngMode::GreyAlpha),
            2 => ImageFormat::Png(PngMode::Grey16),
            _ if image.scene.is_black_and_white() => ImageFormat::Png(PngMode::OneBit),
            _ => ImageFormat::Png(PngMode::Grey),
        },
        810..870 => ImageFormat::Png(PngMode::Palette),
        870..900 => ImageFormat::Png(PngMode::Rgba),
        900..937 => ImageFormat::Png(PngMode::Rgb),
        937..940 => ImageFormat::Png(PngMode::Rgb16),
        940..970 => ImageFormat::Gif,
        970..996 => ImageFormat::WebP,
        _ => ImageFormat::Tiff,
    }
}

/// Encodes `image` in a random format.
pub(super) fn encode(image: &RenderedImage, rng: &mut SampleRng) -> ImageResult<Vec<u8>> {
    let height_px = image.height_px;
    let mut bytes = Vec::new();
    match choose_format(image, rng) {
        ImageFormat::Jpeg => return encode_jpeg(image, 75 + rng.below(18) as u8),
        ImageFormat::GreyJpeg => JpegEncoder::new_with_quality(&mut bytes, 80).encode(
            &first_channel(&image.rgb(true)),
            WIDTH_PX,
            height_px,
            ExtendedColorType::L8,
        )?,
        ImageFormat::Png(mode) => bytes = encode_png(image, mode)?,
        ImageFormat::Gif => {
            let pixels = image.coverage.iter().flat_map(|&coverage| {
                let [red, green, blue] = image.blend(coverage);
                [red, green, blue, 255]
            });
            GifEncoder::new_with_speed(&mut bytes, 30).encode(
                &pixels.collect::<Vec<u8>>(),
                WIDTH_PX,
                height_px,
                ExtendedColorType::Rgba8,
            )?;
        }
        ImageFormat::WebP => WebPEncoder::new_lossless(&mut bytes).encode(
            &image.rgb(false),
            WIDTH_PX,
            height_px,
            ExtendedColorType::Rgb8,
        )?,
        ImageFormat::Tiff => {
            let mut file = std::io::Cursor::new(Vec::new());
            TiffEncoder::new(&mut file).write_image(&image.rgb(false), WIDTH_PX, height_px, ExtendedColorType::Rgb8)?;
            bytes = file.into_inner();
        }
    }
    Ok(bytes)
}

fn encode_jpeg(image: &RenderedImage, quality: u8) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode(
        &image.rgb(true),
        WIDTH_PX,
        image.height_px,
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

fn first_channel(rgb: &[u8]) -> Vec<u8> {
    rgb.iter().step_by(3).copied().collect()
}

fn encode_png(image: &RenderedImage, mode: PngMode) -> std::io::Result<Vec<u8>> {
    let file = Png { width_px: WIDTH_PX, height_px: image.height_px, mode };
    let widened = |bytes: Vec<u8>| -> Vec<u8> { bytes.into_iter().flat_map(|byte| [byte, byte]).collect() };
    match mode {
        PngMode::Palette => {
            let palette: Vec<[u8; 3]> = (0..=FULL).map(|coverage| image.blend(coverage)).collect();
            file.encode(&image.coverage, &palette)
        }
        PngMode::OneBit => {
            let foreground_is_white = image.foreground[0] > 127;
            let row_bytes = WIDTH_PX.div_ceil(8) as usize;
            let mut bits = vec![0; row_bytes * image.height_px as usize];
            for (index, &coverage) in image.coverage.iter().enumerate() {
                let (row, column) = (index / WIDTH_PX as usize, index % WIDTH_PX as usize);
                if (coverage * 2 >= FULL) == foreground_is_white {
                    bits[row * row_bytes + column / 8] |= 0x80 >> (column % 8);
                }
            }
            file.encode(&bits, &[])
        }
        PngMode::Grey => file.encode(&first_channel(&image.rgb(false)), &[]),
        PngMode::Grey16 => file.encode(&widened(first_channel(&image.rgb(false))), &[]),
        PngMode::Rgb => file.encode(&image.rgb(false), &[]),
        // With noise: the only format whose base64 exceeds common line buffers.
        PngMode::Rgb16 => file.encode(&widened(image.rgb(true)), &[]),
        PngMode::GreyAlpha => file.encode(&with_alpha(image, 1), &[]),
        PngMode::Rgba => file.encode(&with_alpha(image, 3), &[]),
    }
}

/// Returns pixels of `channels` colour bytes and an alpha byte. A white background becomes transparent black, as in
/// logos and icons of the corpus; a reader that drops the alpha channel sees black.
fn with_alpha(image: &RenderedImage, channels: usize) -> Vec<u8> {
    let transparent = image.scene.background == super::scenes::WHITE;
    let mut bytes = Vec::with_capacity(image.coverage.len() * (channels + 1));
    for &coverage in &image.coverage {
        let (colour, alpha) = match coverage {
            0 if transparent => ([0; 3], 0),
            _ if transparent => (image.foreground, (u32::from(coverage) * 255 / u32::from(FULL)) as u8),
            _ => (image.blend(coverage), 255),
        };
        bytes.extend_from_slice(&colour[..channels]);
        bytes.push(alpha);
    }
    bytes
}

/// Kinds of unusable rows of the image shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// An SVG drawing.
    Svg,
    /// An HTML error page that a server sends instead of an image.
    Html,
    /// A truncated JPEG file: in the scan or in the tables.
    Truncated,
    /// Invalid base64: characters outside the alphabet, or an impossible length.
    Base64,
    /// No data.
    Empty,
    /// A PNG file of a few bytes that claims 60,000 × 60,000 pixels.
    Bomb,
    /// Two or four fields instead of three.
    Fields,
    /// A URL that is not UTF-8.
    UrlBytes,
}

/// All kinds, in the order of their use.
pub(super) const UNUSABLE_KINDS: [Unusable; 8] = [
    Unusable::Svg,
    Unusable::Html,
    Unusable::Truncated,
    Unusable::Base64,
    Unusable::Empty,
    Unusable::Bomb,
    Unusable::Fields,
    Unusable::UrlBytes,
];

impl Unusable {
    /// Returns the base64 field. If the row is unusable for another reason, it is a valid image. `odd` selects the
    /// second variant.
    pub(super) fn base64_field(self, image: &RenderedImage, odd: bool) -> ImageResult<String> {
        let encoded = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
        Ok(match self {
            Self::Svg => encoded(
                b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"300\" height=\"200\">\
                  <circle cx=\"150\" cy=\"100\" r=\"80\" fill=\"red\"/></svg>\n",
            ),
            Self::Html => encoded(
                b"<!DOCTYPE html>\n<html lang=\"en\"><head><title>Error</title></head><body><h1>429 Too Many Requests</h1></body></html>\n",
            ),
            Self::Truncated => {
                let whole = encode_jpeg(image, 85)?;
                encoded(&whole[..if odd { 100 } else { whole.len() / 2 }])
            }
            Self::Base64 => {
                let mut text = encoded(&encode_jpeg(image, 85)?);
                text.truncate(if odd { text.len() / 4 * 4 - 3 } else { text.len() / 2 });
                if !odd {
                    text.push_str("*&!#");
                }
                text
            }
            Self::Empty => String::new(),
            Self::Bomb => {
                let file = Png { width_px: 60_000, height_px: 60_000, mode: PngMode::Rgb };
                encoded(&file.with_scan(&[0; 4096], &[])?)
            }
            Self::Fields | Self::UrlBytes => encoded(&encode_jpeg(image, 85)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Stream;
    use super::super::scenes::SCENE_COUNT;
    use super::super::scenes::Scene;
    use super::*;
    use image::GenericImageView;

    fn decode(bytes: &[u8]) -> ImageResult<image::DynamicImage> {
        image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?.decode()
    }

    fn render_train_image(number: usize) -> RenderedImage {
        RenderedImage::render(Scene::from_number(number), &mut SampleRng::new(7, Stream::TrainImage(number as u32)))
    }

    fn png_modes(scene: Scene) -> Vec<PngMode> {
        let mut modes = vec![PngMode::Palette, PngMode::Rgb, PngMode::Rgba, PngMode::Rgb16];
        if scene.is_grey() {
            modes.extend([PngMode::Grey, PngMode::GreyAlpha, PngMode::Grey16]);
        }
        if scene.is_black_and_white() {
            modes.push(PngMode::OneBit);
        }
        modes
    }

    #[test]
    fn png_modes_decode_to_the_rendered_colours() {
        for number in [0, 30, 34, 36] {
            let image = render_train_image(number);
            let inside = image.coverage.iter().position(|&coverage| coverage == FULL).unwrap() as u32;
            for mode in png_modes(image.scene) {
                let decoded = decode(&encode_png(&image, mode).unwrap()).unwrap();
                assert_eq!(decoded.dimensions(), (WIDTH_PX, image.height_px), "{mode:?}");
                let pixel = decoded.get_pixel(inside % WIDTH_PX, inside / WIDTH_PX);
                for channel in 0..3 {
                    let difference = i32::from(pixel.0[channel]) - i32::from(image.foreground[channel]);
                    assert!(difference.abs() <= 40, "{mode:?} of scene {number}: {pixel:?} for {:?}", image.foreground);
                }
            }
        }
    }

    #[test]
    fn files_decode_and_four_of_five_are_jpeg() {
        let mut jpegs = 0;
        for number in 0..400 {
            let mut rng = SampleRng::new(1, Stream::TrainImage(number));
            let image = RenderedImage::render(Scene::from_number(number as usize), &mut rng);
            let bytes = encode(&image, &mut rng).unwrap();
            jpegs += usize::from(bytes.starts_with(&[0xff, 0xd8]));
            let decoded = decode(&bytes).unwrap();
            assert_eq!(decoded.dimensions(), (WIDTH_PX, image.height_px));
        }
        assert!((280..360).contains(&jpegs), "{jpegs} of 400");
    }

    #[test]
    fn unusable_payloads_do_not_decode() {
        for kind in UNUSABLE_KINDS {
            for odd in [false, true] {
                let field = kind.base64_field(&render_train_image(2), odd).unwrap();
                let bytes = base64_simd::STANDARD.decode_to_vec(&field);
                match kind {
                    Unusable::Base64 => assert!(bytes.is_err(), "{odd}"),
                    Unusable::Empty => assert!(field.is_empty()),
                    Unusable::Fields | Unusable::UrlBytes => {
                        assert!(decode(&bytes.unwrap()).is_ok());
                    }
                    Unusable::Truncated => assert!(!bytes.unwrap().ends_with(&[0xff, 0xd9])),
                    Unusable::Bomb => {
                        let reader = image::ImageReader::new(std::io::Cursor::new(bytes.unwrap()));
                        let dimensions = reader.with_guessed_format().unwrap().into_dimensions().unwrap();
                        assert_eq!(dimensions, (60_000, 60_000));
                    }
                    Unusable::Svg | Unusable::Html => assert!(decode(&bytes.unwrap()).is_err()),
                }
            }
        }
    }

    #[test]
    fn every_scene_encodes_in_all_its_modes() {
        for number in 0..SCENE_COUNT {
            for mode in png_modes(Scene::from_number(number)) {
                assert!(decode(&encode_png(&render_train_image(number), mode).unwrap()).is_ok(), "{number} {mode:?}");
            }
        }
    }
}
