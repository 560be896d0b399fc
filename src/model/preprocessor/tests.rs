//! Tests of the image preprocessing against transformers.

use super::*;

fn parse(text: &str, family: Family) -> Result<Preprocessor, ModelError> {
    Preprocessor::parse(text.as_bytes(), Path::new("preprocessor_config.json"), family)
}

#[test]
fn legacy_vit_layout_is_read() {
    let text = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;
    assert_eq!(parse(text, Family::Vit).unwrap(), Preprocessor::family_default(Family::Vit));
}

#[test]
fn current_layouts_are_read() {
    let text = r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 384, "width": 384},
        "do_rescale": false, "do_normalize": false, "resample": 3}"#;
    let vit = parse(text, Family::Vit).unwrap();
    assert_eq!(vit.resize, Some(Resize::Squash { height_px: 384, width_px: 384 }));
    assert_eq!((vit.rescale, vit.mean, vit.std), (1.0, [0.0; 3], [1.0; 3]));
    assert_eq!((vit.crop_px, vit.resample), (None, Some(3)));
    let text = r#"{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": 224, "width": 224}, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}"#;
    assert_eq!(parse(text, Family::Dinov2).unwrap(), Preprocessor::family_default(Family::Dinov2));
}

#[test]
fn meaning_of_bare_number_follows_processor_class() {
    let edge = parse(r#"{"size": 256, "crop_size": 98}"#, Family::Dinov2).unwrap();
    assert_eq!((edge.resize, edge.crop_px), (Some(Resize::ShortestEdge { px: 256 }), Some(98)));
    let text = r#"{"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "do_center_crop": false}"#;
    let squash = parse(text, Family::Dinov2).unwrap();
    assert_eq!(squash.resize, Some(Resize::Squash { height_px: 64, width_px: 64 }));
    assert_eq!(parse(r#"{"do_resize": false}"#, Family::Vit).unwrap().resize, None);
}

#[test]
fn invalid_values_name_their_key() {
    for (text, expected) in [
        (r#"{"size": 0}"#, "`size` gives `0` pixels"),
        (r#"{"size": {"longest_edge": 9}}"#, "`size` must be a number"),
        (r#"{"crop_size": {"height": 4, "width": 5}, "do_center_crop": true}"#, "`crop_size` is"),
        (r#"{"resample": 6}"#, "`resample` is `6`"),
        (r#"{"image_std": [1, 0, 1]}"#, "`image_std` is"),
        (r#"{"image_mean": [1, 2]}"#, "`image_mean`"),
    ] {
        let error = parse(text, Family::Vit).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn exported_json_reads_back_unchanged() {
    for family in Family::ALL {
        let value = Preprocessor::family_default(family);
        let text = value.to_json(family).to_string();
        assert_eq!(parse(&text, family).unwrap(), value);
    }
}

/// Values of transformers 5.24, printed by `tests/reference/preprocessor.py`.
#[test]
fn absent_keys_take_class_defaults() {
    let clip = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
    let half = ([0.5; 3], [0.5; 3]);
    let square = |px| Some(Resize::Squash { height_px: px, width_px: px });
    let edge = |px| Some(Resize::ShortestEdge { px });
    for (class, resize, crop_px, resample, (mean, std)) in [
        ("ViTImageProcessor", square(224), None, 2, half),
        ("ViTImageProcessorFast", square(224), None, 2, half),
        ("ViTFeatureExtractor", square(224), None, 2, half),
        ("BitImageProcessor", edge(224), Some(224), 3, clip),
        ("CLIPImageProcessor", edge(224), Some(224), 3, clip),
        ("DeiTImageProcessor", square(256), Some(224), 3, half),
        ("BeitImageProcessor", square(224), None, 3, half),
        ("SiglipImageProcessor", square(224), None, 3, half),
        ("BlipImageProcessor", square(384), None, 3, clip),
        ("PvtImageProcessor", square(224), None, 3, (IMAGENET_MEAN, IMAGENET_STD)),
        ("DINOv3ViTImageProcessor", square(224), None, 2, (IMAGENET_MEAN, IMAGENET_STD)),
        ("MobileNetV1ImageProcessor", edge(256), Some(224), 2, half),
        ("ConvNextImageProcessor", square(384), None, 3, half),
    ] {
        for family in [Family::Vit, Family::Dinov2] {
            let text = format!(r#"{{"image_processor_type": "{class}"}}"#);
            let expected = Preprocessor { resize, crop_px, resample: Some(resample), rescale: 1.0 / 255.0, mean, std };
            assert_eq!(parse(&text, family).unwrap(), expected, "{class}");
        }
    }
    let unnamed = parse("{}", Family::Dinov2).unwrap();
    assert_eq!((unnamed.resize, unnamed.mean), (edge(224), clip.0));
}

#[test]
fn unknown_class_is_rejected_by_name() {
    let error = parse(r#"{"image_processor_type": "LevitImageProcessor"}"#, Family::Vit).unwrap_err().to_string();
    assert!(error.contains("`image_processor_type` is `LevitImageProcessor`, which is not supported"), "{error}");
    let error = parse(r#"{"feature_extractor_type": "Foo"}"#, Family::Vit).unwrap_err().to_string();
    assert!(error.contains("`feature_extractor_type` is `Foo`"), "{error}");
}

#[test]
fn convnext_crops_small_sizes() {
    let geometry = |keys: &str| {
        let text = format!(r#"{{"image_processor_type": "ConvNextImageProcessor", {keys}}}"#);
        parse(&text, Family::Vit).map(|preprocessor| (preprocessor.resize, preprocessor.crop_px))
    };
    let edge = |px| Some(Resize::ShortestEdge { px });
    // int(224 / 0.875) is 256, int(224 / 0.95) is 235.
    assert_eq!(geometry(r#""size": 224"#).unwrap(), (edge(256), Some(224)));
    assert_eq!(geometry(r#""size": {"shortest_edge": 224}, "crop_pct": 0.95"#).unwrap(), (edge(235), Some(224)));
    let squash = Some(Resize::Squash { height_px: 384, width_px: 384 });
    assert_eq!(geometry(r#""size": 384, "crop_pct": 0.5"#).unwrap(), (squash, None));
    for (keys, expected) in [
        (r#""size": 224, "crop_pct": NaN"#, "`crop_pct` is `NaN`"),
        (r#""size": 224, "crop_pct": 0"#, "`crop_pct` is `0`"),
        (r#""size": {"height": 224, "width": 224}"#, "`size` must be a number or `shortest_edge`"),
        (r#""do_center_crop": true, "crop_size": 200"#, "`do_center_crop` is `true`"),
    ] {
        let error = geometry(keys).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn names_lists_and_nan_are_read_like_transformers() {
    let parsed = parse(r#"{"resample": "bicubic", "size": [192, 256], "unused": NaN}"#, Family::Vit).unwrap();
    assert_eq!(parsed.resample, Some(3));
    assert_eq!(parsed.resize, Some(Resize::Squash { height_px: 192, width_px: 256 }));
    for (text, expected) in [
        (r#"{"resample": "nearest"}"#, "`resample` is `nearest`; supported are `nearest-exact`"),
        (r#"{"resample": -1}"#, "`resample` is `-1`"),
        (r#"{"rescale_factor": NaN}"#, "`rescale_factor` is `NaN`; it must be finite"),
        (r#"{"image_mean": [0.5, -Infinity, 0.5]}"#, "`image_mean` is `[0.5, -inf, 0.5]`"),
        (r#"{"image_std": NaN}"#, "`image_std` is `[NaN, NaN, NaN]`"),
        (r#"{"do_center_crop": true}"#, "`crop_size` is absent although `do_center_crop` is `true`"),
    ] {
        let error = parse(text, Family::Vit).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Cases of `tests/reference/preprocessor.py`, run with transformers 5.24.
#[test]
fn null_disables_a_step_and_is_rejected_as_a_value() {
    let text = r#"{"do_resize": null, "size": null, "resample": null, "do_center_crop": null, "crop_size": null,
        "do_rescale": null, "rescale_factor": null, "do_normalize": null, "image_mean": null, "image_std": null}"#;
    let off = parse(text, Family::Dinov2).unwrap();
    assert_eq!((off.resize, off.crop_px), (None, None));
    assert_eq!((off.rescale, off.mean, off.std), (1.0, [0.0; 3], [1.0; 3]));
    for key in ["size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std"] {
        let error = parse(&format!(r#"{{"{key}": null}}"#), Family::Dinov2).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}` is `null` although")), "{error}");
    }
}
