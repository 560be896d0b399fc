//! Image processor classes of transformers 5.24 with their default values.
//!
//! Listed are the classes with the pipeline resize, centre crop, rescale, normalise. Source: the class attributes in
//! `transformers/models/*/image_processing_*.py`. An absent key takes the value of the class attribute.

use super::Resize;
use crate::model::family::Family;

/// Channel means of `ImageNet` in RGB order (`IMAGENET_DEFAULT_MEAN`).
pub(super) const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel standard deviations of `ImageNet` in RGB order (`IMAGENET_DEFAULT_STD`).
pub(super) const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Mean and standard deviation that map [0, 1] to [-1, 1] (`IMAGENET_STANDARD_MEAN`, `IMAGENET_STANDARD_STD`).
const HALF: [f32; 3] = [0.5; 3];
/// Channel means of CLIP's training images in RGB order (`OPENAI_CLIP_MEAN`).
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Channel standard deviations of CLIP's training images in RGB order (`OPENAI_CLIP_STD`).
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Pillow's code of the bilinear filter.
const BILINEAR: u8 = 2;
/// Pillow's code of the bicubic filter.
const BICUBIC: u8 = 3;

/// Default values of an image processor class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ProcessorClass {
    pub(super) name: &'static str,
    pub(super) size: Resize,
    /// Whether a bare number as `size` is the side of a square; otherwise it is the shorter side.
    pub(super) default_to_square: bool,
    pub(super) resample: u8,
    pub(super) do_center_crop: bool,
    pub(super) crop_px: Option<u32>,
    pub(super) mean: [f32; 3],
    pub(super) std: [f32; 3],
    /// Default of `crop_pct`, for a class whose resize step crops.
    pub(super) crop_pct: Option<f64>,
}

/// A class without centre crop that resizes to a square and maps values to [-1, 1].
const VIT: ProcessorClass = ProcessorClass {
    name: "ViTImageProcessor",
    size: square(224),
    default_to_square: true,
    resample: BILINEAR,
    do_center_crop: false,
    crop_px: None,
    mean: HALF,
    std: HALF,
    crop_pct: None,
};

/// A class that resizes the shorter side and crops.
const BIT: ProcessorClass = ProcessorClass {
    name: "BitImageProcessor",
    size: Resize::ShortestEdge { px: 224 },
    default_to_square: false,
    resample: BICUBIC,
    do_center_crop: true,
    crop_px: Some(224),
    mean: CLIP_MEAN,
    std: CLIP_STD,
    crop_pct: None,
};

/// All supported classes.
pub(super) const CLASSES: [ProcessorClass; 12] = [
    VIT,
    BIT,
    ProcessorClass { name: "CLIPImageProcessor", ..BIT },
    ProcessorClass { name: "ChineseCLIPImageProcessor", ..BIT },
    ProcessorClass {
        name: "DeiTImageProcessor",
        size: square(256),
        resample: BICUBIC,
        do_center_crop: true,
        crop_px: Some(224),
        ..VIT
    },
    ProcessorClass { name: "BeitImageProcessor", resample: BICUBIC, crop_px: Some(224), ..VIT },
    ProcessorClass { name: "SiglipImageProcessor", default_to_square: false, resample: BICUBIC, ..VIT },
    ProcessorClass {
        name: "BlipImageProcessor",
        size: square(384),
        mean: CLIP_MEAN,
        std: CLIP_STD,
        resample: BICUBIC,
        ..VIT
    },
    // It rescales before it resizes, so its pixels are not rounded in between.
    ProcessorClass { name: "DINOv3ViTImageProcessor", mean: IMAGENET_MEAN, std: IMAGENET_STD, ..VIT },
    ProcessorClass { name: "PvtImageProcessor", resample: BICUBIC, mean: IMAGENET_MEAN, std: IMAGENET_STD, ..VIT },
    ProcessorClass {
        name: "MobileNetV1ImageProcessor",
        size: Resize::ShortestEdge { px: 256 },
        resample: BILINEAR,
        mean: HALF,
        std: HALF,
        ..BIT
    },
    ProcessorClass {
        name: "ConvNextImageProcessor",
        size: Resize::ShortestEdge { px: 384 },
        default_to_square: false,
        resample: BICUBIC,
        crop_pct: Some(224.0 / 256.0),
        ..VIT
    },
];

const fn square(px: u32) -> Resize {
    Resize::Squash { height_px: px, width_px: px }
}

/// Returns the class that `AutoImageProcessor` chooses for a family if the file names none.
pub(super) fn family_class(family: Family) -> ProcessorClass {
    let name = match family {
        Family::Vit | Family::VitMae | Family::Swin | Family::Swinv2 => VIT.name,
        Family::Deit => "DeiTImageProcessor",
        Family::Beit => "BeitImageProcessor",
        Family::Dinov2 | Family::Dinov2WithRegisters => BIT.name,
        Family::Dinov3Vit => "DINOv3ViTImageProcessor",
        Family::Siglip => "SiglipImageProcessor",
        Family::Clip | Family::MetaClip2 | Family::AltClip => "CLIPImageProcessor",
    };
    find_class(name).unwrap_or(VIT)
}

/// Finds a class by its name, its former name as a feature extractor, or the name of one of its backends.
pub(super) fn find_class(name: &str) -> Option<ProcessorClass> {
    let base = name.strip_suffix("Fast").or_else(|| name.strip_suffix("Pil")).unwrap_or(name);
    let base = base.replace("FeatureExtractor", "ImageProcessor");
    CLASSES.into_iter().find(|class| class.name == base)
}
