//! A picture in, the bytes of one of the formats of the corpus out; and the payloads that nothing can be drawn from.
//!
//! About 80 % JPEG, the rest PNG in seven modes, GIF, WebP and TIFF. Only pictures without hue become grey or one-bit
//! files, so no format takes away what tells the classes apart.

use super::png::Png;
use super::png::PngMode;
use super::render::FULL;
use super::render::Picture;
use super::render::WIDTH_PX;
use super::rng::SampleRng;
use image::ExtendedColorType;
use image::ImageEncoder;
use image::ImageResult;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::tiff::TiffEncoder;
use image::codecs::webp::WebPEncoder;

/// How a picture is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Jpeg,
    GreyJpeg,
    Png(PngMode),
    Gif,
    WebP,
    Tiff,
}

fn form(picture: &Picture, rng: &mut SampleRng) -> Form {
    let grey = picture.concept.is_grey();
    match rng.below(1000) {
        0..810 if grey && rng.percent(25) => Form::GreyJpeg,
        0..810 => Form::Jpeg,
        810..940 if grey => match rng.below(4) {
            0 => Form::Png(PngMode::Grey),
            1 => Form::Png(PngMode::GreyAlpha),
            2 => Form::Png(PngMode::Grey16),
            _ if picture.concept.is_black_and_white() => Form::Png(PngMode::OneBit),
            _ => Form::Png(PngMode::Grey),
        },
        810..870 => Form::Png(PngMode::Palette),
        870..900 => Form::Png(PngMode::Rgba),
        900..937 => Form::Png(PngMode::Rgb),
        937..940 => Form::Png(PngMode::Rgb16),
        940..970 => Form::Gif,
        970..996 => Form::WebP,
        _ => Form::Tiff,
    }
}

/// Encodes `picture` in the format that `dice` choose.
pub(super) fn encode(picture: &Picture, rng: &mut SampleRng) -> ImageResult<Vec<u8>> {
    let height_px = picture.height_px;
    let mut bytes = Vec::new();
    match form(picture, rng) {
        Form::Jpeg => return jpeg(picture, 75 + rng.below(18) as u8),
        Form::GreyJpeg => JpegEncoder::new_with_quality(&mut bytes, 80).encode(
            &first_channel(&picture.rgb(true)),
            WIDTH_PX,
            height_px,
            ExtendedColorType::L8,
        )?,
        Form::Png(mode) => bytes = png(picture, mode)?,
        Form::Gif => {
            let pixels = picture.coverage.iter().flat_map(|&coverage| {
                let [red, green, blue] = picture.mixed(coverage);
                [red, green, blue, 255]
            });
            GifEncoder::new_with_speed(&mut bytes, 30).encode(
                &pixels.collect::<Vec<u8>>(),
                WIDTH_PX,
                height_px,
                ExtendedColorType::Rgba8,
            )?;
        }
        Form::WebP => WebPEncoder::new_lossless(&mut bytes).encode(
            &picture.rgb(false),
            WIDTH_PX,
            height_px,
            ExtendedColorType::Rgb8,
        )?,
        Form::Tiff => {
            let mut file = std::io::Cursor::new(Vec::new());
            TiffEncoder::new(&mut file).write_image(
                &picture.rgb(false),
                WIDTH_PX,
                height_px,
                ExtendedColorType::Rgb8,
            )?;
            bytes = file.into_inner();
        }
    }
    Ok(bytes)
}

fn jpeg(picture: &Picture, quality: u8) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode(
        &picture.rgb(true),
        WIDTH_PX,
        picture.height_px,
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

fn first_channel(rgb: &[u8]) -> Vec<u8> {
    rgb.iter().step_by(3).copied().collect()
}

fn png(picture: &Picture, mode: PngMode) -> std::io::Result<Vec<u8>> {
    let file = Png { width_px: WIDTH_PX, height_px: picture.height_px, mode };
    let widened = |bytes: Vec<u8>| -> Vec<u8> { bytes.into_iter().flat_map(|byte| [byte, byte]).collect() };
    match mode {
        PngMode::Palette => {
            let palette: Vec<[u8; 3]> = (0..=FULL).map(|coverage| picture.mixed(coverage)).collect();
            file.encode(&picture.coverage, &palette)
        }
        PngMode::OneBit => {
            let front_is_white = picture.front[0] > 127;
            let row_bytes = WIDTH_PX.div_ceil(8) as usize;
            let mut bits = vec![0; row_bytes * picture.height_px as usize];
            for (place, &coverage) in picture.coverage.iter().enumerate() {
                let (row, column) = (place / WIDTH_PX as usize, place % WIDTH_PX as usize);
                if (coverage * 2 >= FULL) == front_is_white {
                    bits[row * row_bytes + column / 8] |= 0x80 >> (column % 8);
                }
            }
            file.encode(&bits, &[])
        }
        PngMode::Grey => file.encode(&first_channel(&picture.rgb(false)), &[]),
        PngMode::Grey16 => file.encode(&widened(first_channel(&picture.rgb(false))), &[]),
        PngMode::Rgb => file.encode(&picture.rgb(false), &[]),
        // With noise: the one kind whose base64 is longer than any line buffer.
        PngMode::Rgb16 => file.encode(&widened(picture.rgb(true)), &[]),
        PngMode::GreyAlpha => file.encode(&with_alpha(picture, 1), &[]),
        PngMode::Rgba => file.encode(&with_alpha(picture, 3), &[]),
    }
}

/// Pixels of `channels` bytes and one of alpha. A white background becomes transparent black, as in the logos and icons of
/// the corpus: who drops the alpha channel sees a black one.
fn with_alpha(picture: &Picture, channels: usize) -> Vec<u8> {
    let cut_out = picture.concept.back == super::concepts::WHITE;
    let mut bytes = Vec::with_capacity(picture.coverage.len() * (channels + 1));
    for &coverage in &picture.coverage {
        let (colour, alpha) = match coverage {
            0 if cut_out => ([0; 3], 0),
            _ if cut_out => (picture.front, (u32::from(coverage) * 255 / u32::from(FULL)) as u8),
            _ => (picture.mixed(coverage), 255),
        };
        bytes.extend_from_slice(&colour[..channels]);
        bytes.push(alpha);
    }
    bytes
}

/// Rows of the image shards that nothing can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// A vector drawing.
    Svg,
    /// The page that a server sends in place of an image.
    Html,
    /// A JPEG file that ends early: in the scan, or in the tables.
    Truncated,
    /// Characters outside the alphabet, or a length that no encoder writes.
    Base64,
    /// No data at all.
    Empty,
    /// A PNG file of a few bytes that declares 60,000 × 60,000 pixels.
    Bomb,
    /// Two or four fields.
    Fields,
    /// A URL that is not UTF-8.
    UrlBytes,
}

/// Every kind, in the order in which they are handed out.
pub(super) const UNUSABLE: [Unusable; 8] = [
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
    /// The base64 field. Where what makes the row unusable lies outside it, a good image; `odd` chooses the second variant.
    pub(super) fn field(self, picture: &Picture, odd: bool) -> ImageResult<String> {
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
                let whole = jpeg(picture, 85)?;
                encoded(&whole[..if odd { 100 } else { whole.len() / 2 }])
            }
            Self::Base64 => {
                let mut text = encoded(&jpeg(picture, 85)?);
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
            Self::Fields | Self::UrlBytes => encoded(&jpeg(picture, 85)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::concepts::CONCEPTS;
    use super::super::concepts::Concept;
    use super::super::rng::Purpose;
    use super::*;
    use image::GenericImageView;

    fn decoded(bytes: &[u8]) -> ImageResult<image::DynamicImage> {
        image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format()?.decode()
    }

    fn picture(number: usize) -> Picture {
        Picture::draw(Concept::of(number), &mut SampleRng::new(7, Purpose::TrainImage(number as u32)))
    }

    fn all_forms(concept: Concept) -> Vec<PngMode> {
        let mut modes = vec![PngMode::Palette, PngMode::Rgb, PngMode::Rgba, PngMode::Rgb16];
        if concept.is_grey() {
            modes.extend([PngMode::Grey, PngMode::GreyAlpha, PngMode::Grey16]);
        }
        if concept.is_black_and_white() {
            modes.push(PngMode::OneBit);
        }
        modes
    }

    #[test]
    fn every_png_mode_decodes_to_the_drawn_colours() {
        for number in [0, 30, 34, 36] {
            let picture = picture(number);
            let inside = picture.coverage.iter().position(|&coverage| coverage == FULL).unwrap() as u32;
            for mode in all_forms(picture.concept) {
                let image = decoded(&png(&picture, mode).unwrap()).unwrap();
                assert_eq!(image.dimensions(), (WIDTH_PX, picture.height_px), "{mode:?}");
                let pixel = image.get_pixel(inside % WIDTH_PX, inside / WIDTH_PX);
                for channel in 0..3 {
                    let difference = i32::from(pixel.0[channel]) - i32::from(picture.front[channel]);
                    assert!(difference.abs() <= 40, "{mode:?} of concept {number}: {pixel:?} for {:?}", picture.front);
                }
            }
        }
    }

    #[test]
    fn four_of_five_files_are_jpeg_and_every_file_decodes() {
        let mut jpegs = 0;
        for number in 0..400 {
            let mut rng = SampleRng::new(1, Purpose::TrainImage(number));
            let picture = Picture::draw(Concept::of(number as usize), &mut rng);
            let bytes = encode(&picture, &mut rng).unwrap();
            jpegs += usize::from(bytes.starts_with(&[0xff, 0xd8]));
            let image = decoded(&bytes).unwrap();
            assert_eq!(image.dimensions(), (WIDTH_PX, picture.height_px));
        }
        assert!((280..360).contains(&jpegs), "{jpegs} of 400");
    }

    #[test]
    fn nothing_unusable_decodes() {
        for kind in UNUSABLE {
            for odd in [false, true] {
                let field = kind.field(&picture(2), odd).unwrap();
                let bytes = base64_simd::STANDARD.decode_to_vec(&field);
                match kind {
                    Unusable::Base64 => assert!(bytes.is_err(), "{odd}"),
                    Unusable::Empty => assert!(field.is_empty()),
                    Unusable::Fields | Unusable::UrlBytes => {
                        assert!(decoded(&bytes.unwrap()).is_ok());
                    }
                    Unusable::Truncated => assert!(!bytes.unwrap().ends_with(&[0xff, 0xd9])),
                    Unusable::Bomb => {
                        let reader = image::ImageReader::new(std::io::Cursor::new(bytes.unwrap()));
                        let dimensions = reader.with_guessed_format().unwrap().into_dimensions().unwrap();
                        assert_eq!(dimensions, (60_000, 60_000));
                    }
                    Unusable::Svg | Unusable::Html => assert!(decoded(&bytes.unwrap()).is_err()),
                }
            }
        }
    }

    #[test]
    fn every_concept_can_be_encoded_in_every_mode_it_may_take() {
        for number in 0..CONCEPTS {
            for mode in all_forms(Concept::of(number)) {
                assert!(decoded(&png(&picture(number), mode).unwrap()).is_ok(), "{number} {mode:?}");
            }
        }
    }
}
