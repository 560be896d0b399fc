//! Families of image backbones, named by `model_type` in `config.json`.

/// Family of image backbones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// ViT (Dosovitskiy et al. 2020); also DINO v1, whose files are those of a ViT.
    Vit,
    /// `DeiT` with a distillation token (Touvron et al. 2020).
    Deit,
    /// Encoder of a masked autoencoder (He et al. 2021).
    VitMae,
    /// `BEiT` (Bao et al. 2021).
    Beit,
    /// `DINOv2` (Oquab et al. 2023).
    Dinov2,
    /// `DINOv2` with registers (Darcet et al. 2023).
    Dinov2WithRegisters,
    /// `DINOv3` vision transformers (Siméoni et al. 2025).
    Dinov3Vit,
    /// Vision tower of `SigLIP` and of `SigLIP` 2 with a fixed size (Zhai et al. 2023, Tschannen et al. 2025).
    Siglip,
    /// Vision tower of CLIP (Radford et al. 2021).
    Clip,
    /// Vision tower of Meta CLIP 2 (Chuang et al. 2025).
    MetaClip2,
    /// Vision tower of `AltCLIP`, that of CLIP beside an `XLM-R` text tower (Chen et al. 2022).
    AltClip,
    /// Swin (Liu et al. 2021).
    Swin,
    /// Swin v2 (Liu et al. 2021).
    Swinv2,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 13] = [
        Self::Vit,
        Self::Deit,
        Self::VitMae,
        Self::Beit,
        Self::Dinov2,
        Self::Dinov2WithRegisters,
        Self::Dinov3Vit,
        Self::Siglip,
        Self::Clip,
        Self::MetaClip2,
        Self::AltClip,
        Self::Swin,
        Self::Swinv2,
    ];

    /// Returns the `model_type` of the family's checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vit => "vit",
            Self::Deit => "deit",
            Self::VitMae => "vit_mae",
            Self::Beit => "beit",
            Self::Dinov2 => "dinov2",
            Self::Dinov2WithRegisters => "dinov2_with_registers",
            Self::Dinov3Vit => "dinov3_vit",
            Self::Siglip => "siglip",
            Self::Clip => "clip",
            Self::MetaClip2 => "metaclip_2",
            Self::AltClip => "altclip",
            Self::Swin => "swin",
            Self::Swinv2 => "swinv2",
        }
    }

    /// Finds a family by `model_type`; the flag says whether the configuration is that of a vision tower alone.
    pub(super) fn find(model_type: &str) -> Option<(Self, bool)> {
        let family = |name: &str| Self::ALL.into_iter().find(|family| family.name() == name);
        match model_type.strip_suffix("_vision_model") {
            Some(name) => family(name).filter(|family| family.is_paired()).map(|family| (family, true)),
            None => family(model_type).map(|family| (family, false)),
        }
    }

    /// Returns the list of the supported families for a message.
    pub fn list() -> String {
        let names: Vec<String> = Self::ALL.iter().map(|family| format!("`{}`", family.name())).collect();
        let (last, others) = names
            .split_last()
            .map_or((String::new(), String::new()), |(last, others)| (last.clone(), others.join(", ")));
        format!("{others} and {last}")
    }

    /// Returns whether the family's full checkpoints pair the backbone with a text tower.
    pub fn is_paired(self) -> bool {
        self == Self::Siglip || self.is_clip()
    }

    /// Returns whether the backbone is the vision tower of CLIP.
    pub(super) fn is_clip(self) -> bool {
        matches!(self, Self::Clip | Self::MetaClip2 | Self::AltClip)
    }

    /// Returns whether tokens attend within windows, and stages merge tokens.
    pub(super) fn is_windowed(self) -> bool {
        matches!(self, Self::Swin | Self::Swinv2)
    }

    /// Returns the prefix of the backbone's tensors in the weights of a larger model, without the dot.
    pub(super) fn tensor_prefix(self) -> &'static str {
        match self {
            Self::VitMae => "vit",
            Self::Siglip | Self::Clip | Self::MetaClip2 | Self::AltClip => "vision_model",
            // `DINOv3` has no larger model; its base class names its encoder so in memory.
            Self::Dinov3Vit => "model",
            other => other.name(),
        }
    }

    /// Returns the transformers class of this backbone with a classifier, and its `model_type`; `None` if transformers
    /// has no such class.
    pub fn classifier_class(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            // The encoder of an MAE is a ViT.
            Self::Vit | Self::VitMae => ("ViTForImageClassification", "vit"),
            Self::Deit => ("DeiTForImageClassification", "deit"),
            Self::Beit => ("BeitForImageClassification", "beit"),
            Self::Dinov2 => ("Dinov2ForImageClassification", "dinov2"),
            Self::Dinov2WithRegisters => ("Dinov2WithRegistersForImageClassification", "dinov2_with_registers"),
            Self::Dinov3Vit | Self::AltClip => return None,
            Self::Siglip => ("SiglipForImageClassification", "siglip"),
            Self::Clip => ("CLIPForImageClassification", "clip"),
            Self::MetaClip2 => ("MetaClip2ForImageClassification", "metaclip_2"),
            Self::Swin => ("SwinForImageClassification", "swin"),
            Self::Swinv2 => ("Swinv2ForImageClassification", "swinv2"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_found_by_model_type() {
        for family in Family::ALL {
            assert_eq!(Family::find(family.name()), Some((family, false)));
        }
        assert_eq!(Family::find("clip_vision_model"), Some((Family::Clip, true)));
        assert_eq!(Family::find("metaclip_2_vision_model"), Some((Family::MetaClip2, true)));
        for other in ["swin_vision_model", "siglip2", "clip_text_model", ""] {
            assert_eq!(Family::find(other), None, "{other}");
        }
        assert!(Family::list().ends_with("`swin` and `swinv2`"));
    }
}
