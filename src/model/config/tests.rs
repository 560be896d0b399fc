use super::*;

fn parse(text: &str) -> Result<BackboneConfig, ModelError> {
    BackboneConfig::parse(text.as_bytes(), Path::new("config.json"))
}

fn plain(text: &str) -> PlainConfig {
    match parse(text).unwrap().body {
        Body::Plain(plain) => plain,
        Body::Windowed(_) => panic!("{text} is windowed"),
    }
}

#[test]
fn absent_keys_take_transformers_defaults() {
    let vit = parse(r#"{"model_type": "vit"}"#).unwrap();
    assert_eq!((vit.hidden(), vit.layers(), vit.image_px, vit.patch_px), (768, 12, 224, 16));
    assert!(vit.mask_token.is_none() && (vit.norm_epsilon - 1e-12).abs() < 1e-20);
    let body = plain(r#"{"model_type": "vit"}"#);
    assert!(body.biases.query && body.heads == 12);
    assert_eq!(body.feed_forward, FeedForward::Mlp { inner: 3072 });
    let text = r#"{"model_type": "dinov2", "mlp_ratio": 4, "hidden_size": 1536, "use_swiglu_ffn": true}"#;
    let dinov2 = parse(text).unwrap();
    assert_eq!(plain(text).feed_forward, FeedForward::Gated { inner: 4096, activation: Activation::Silu });
    assert!(dinov2.mask_token.is_some() && dinov2.patch_px == 14 && (dinov2.norm_epsilon - 1e-6).abs() < 1e-12);
    let siglip =
        parse(r#"{"model_type": "siglip", "vision_config": {"hidden_size": 1152, "num_attention_heads": 16}}"#);
    let siglip = siglip.unwrap();
    assert_eq!((siglip.hidden(), siglip.activation, siglip.tower_only), (1152, Activation::GeluTanh, false));
    let clip = parse(r#"{"model_type": "clip_vision_model", "projection_dim": 640}"#).unwrap();
    assert_eq!((clip.patch_px, clip.activation, clip.tower_only), (32, Activation::QuickGelu, true));
    let clip = plain(r#"{"model_type": "clip", "projection_dim": 768, "vision_config": {"projection_dim": 512}}"#);
    assert_eq!(clip.head, Some(ProjectionHead::Linear { dim: 768 }));
    let swin = parse(r#"{"model_type": "swin"}"#).unwrap();
    assert_eq!((swin.hidden(), swin.layers(), swin.width(0), swin.width(4)), (768, 12, 96, 384));
}

#[test]
fn unsupported_family_is_rejected_with_the_list() {
    let error = parse(r#"{"model_type": "resnet"}"#).unwrap_err().to_string();
    let list = "`vit`, `deit`, `vit_mae`, `beit`, `dinov2`, `dinov2_with_registers`, `dinov3_vit`, `siglip`, `clip`, \
                `metaclip_2`, `altclip`, `swin` and `swinv2`";
    assert_eq!(error, format!("`config.json` has model_type `resnet`; supported are {list}"));
    assert!(matches!(parse("{}"), Err(ModelError::Family { .. })));
}

#[test]
fn invalid_values_name_their_key() {
    for (text, expected) in [
        (r#""num_attention_heads": 5"#, "`num_attention_heads` is `5`, which does not divide `hidden_size`, `768`"),
        (r#""num_channels": 1"#, "`num_channels` is `1`; only `3` is supported"),
        (r#""hidden_size": 0"#, "`hidden_size` gives `0`"),
        (r#""num_hidden_layers": 4000000000"#, "`num_hidden_layers` gives `4000000000`"),
        (r#""image_size": [224, 112]"#, "`image_size` is `[224, 112]`; only squares"),
        (r#""patch_size": 300"#, "`patch_size` is `300`, larger than `image_size`"),
        (r#""hidden_act": "selu""#, "`hidden_act` is `selu`; supported are"),
        (r#""layer_norm_eps": -1"#, "`layer_norm_eps` is `-1`"),
        (r#""hidden_size": "768""#, "`hidden_size`: invalid type: string"),
    ] {
        let error = parse(&format!(r#"{{"model_type": "vit", {text}}}"#)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (text, expected) in [
        (r#""dinov2", "mlp_ratio": -2"#, "`mlp_ratio` gives `0`"),
        (r#""swin", "depths": []"#, "`depths` has `0` values; it must have from 1 to 8"),
        (r#""swin", "num_heads": [3]"#, "`num_heads` has `1` values, `depths` has `4`"),
        (
            r#""swin", "num_heads": [3, 6, 12, 25]"#,
            "`num_heads` has `25` for stage 3, which does not divide its width, `768`",
        ),
        (r#""swin", "mlp_ratio": NaN"#, "`mlp_ratio`: invalid type"),
        (r#""swin", "mlp_ratio": -1"#, "`mlp_ratio` is `-1`; it must be from 0 to 64"),
        (r#""swinv2", "image_size": 16"#, "`image_size` gives a grid of `4` patches, too few for `4` stages"),
        (r#""dinov3_vit", "num_attention_heads": 64"#, "heads of `6` values have no rotary positions"),
        (r#""dinov3_vit", "num_register_tokens": 9999"#, "`num_register_tokens` is `9999`; it must be at most 1024"),
        (r#""siglip", "vision_config": {"hidden_size": "1"}"#, "`vision_config.hidden_size`: invalid type: string"),
    ] {
        let error = parse(&format!(r#"{{"model_type": {text}}}"#)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(matches!(parse("{\"model_type\": "), Err(ModelError::Json { .. })));
}

#[test]
fn negative_layers_count_from_the_end() {
    let config = parse(r#"{"model_type": "vit"}"#).unwrap();
    for (layer, block) in [(-1, 11), (-2, 10), (-12, 0), (0, 0), (11, 11)] {
        assert_eq!(config.resolve_layer(layer).unwrap(), block);
    }
    for layer in [12, -13, i32::MIN, i32::MAX] {
        let error = config.resolve_layer(layer).unwrap_err().to_string();
        assert!(error.contains("the model has `12` blocks"), "{error}");
    }
}
