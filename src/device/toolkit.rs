//! Versions of CUDA: which one a driver supports, which one a GPU needs, and what to install or which image to take.
//!
//! Sources: table 3 of the CUDA Toolkit release notes (drivers), the NVRTC documentation of each version (GPUs).

use std::fmt;
use std::str::FromStr;

/// Version of the CUDA toolkit, or of the CUDA interface that a driver supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CudaVersion {
    major: u32,
    minor: u32,
}

const fn version(major: u32, minor: u32) -> CudaVersion {
    CudaVersion { major, minor }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for CudaVersion {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Ok(version(major.parse()?, minor.parse()?))
    }
}

/// First branch of the Linux driver that supports each version of CUDA.
const DRIVERS: [(u32, CudaVersion); 13] = [
    (450, version(11, 0)),
    (470, version(11, 4)),
    (520, version(11, 8)),
    (525, version(12, 0)),
    (530, version(12, 1)),
    (535, version(12, 2)),
    (545, version(12, 3)),
    (550, version(12, 4)),
    (555, version(12, 5)),
    (560, version(12, 6)),
    (570, version(12, 8)),
    (575, version(12, 9)),
    (580, version(13, 0)),
];

/// First version of NVRTC that compiles for a compute capability, for capabilities that old versions lack.
const GENERATIONS: [(&str, CudaVersion); 9] = [
    ("8.0", version(11, 0)),
    ("8.6", version(11, 1)),
    ("8.9", version(11, 8)),
    ("9.0", version(11, 8)),
    ("10.0", version(12, 8)),
    ("12.0", version(12, 8)),
    ("10.3", version(12, 9)),
    ("12.1", version(12, 9)),
    ("11.0", version(13, 0)),
];

/// Container images with a toolkit, the newest first.
const IMAGES: [(&str, CudaVersion); 2] = [("gpu-cuda12.9", version(12, 9)), ("gpu", version(12, 4))];

/// Returns the version of CUDA that a driver supports; `None` if the driver's version has another form.
///
/// A driver newer than the table supports at least the last version.
pub(super) fn supported_by(driver: &str) -> Option<CudaVersion> {
    let branch: u32 = driver.split('.').next()?.parse().ok()?;
    DRIVERS.iter().rev().find(|(first, _)| *first <= branch).map(|(_, cuda)| *cuda)
}

/// Returns the oldest driver branch that supports a version of CUDA.
fn driver_for(cuda: CudaVersion) -> u32 {
    DRIVERS.iter().find(|(_, supported)| *supported >= cuda).map_or(DRIVERS[DRIVERS.len() - 1].0, |(branch, _)| *branch)
}

/// Reads the version of the compiler from a comment in its output: `// Cuda compilation tools, release 12.4, V12.4.131`.
pub(super) fn version_in_ptx(ptx: &str) -> Option<CudaVersion> {
    let rest = ptx.lines().find_map(|line| line.split_once("release ").filter(|_| line.starts_with("//")))?.1;
    rest.split([',', ' ']).next()?.parse().ok()
}

/// Facts by which a remedy is chosen.
#[derive(Debug, Clone, Default)]
pub(super) struct Situation {
    /// Version of NVRTC, if known.
    pub(super) toolkit: Option<CudaVersion>,
    /// Version of the driver, if known.
    pub(super) driver: Option<String>,
    /// Name of the project's container image in which the program runs (`WIKICAP_IMAGE`).
    pub(super) image: Option<String>,
}

impl Situation {
    /// Explains that the driver's library is missing.
    pub(super) fn no_library(&self) -> String {
        const CAPABILITIES: &str =
            "start the container with `--gpus all`, and with `compute` in NVIDIA_DRIVER_CAPABILITIES";
        match (&self.driver, &self.image) {
            (Some(driver), Some(_)) => {
                format!("driver {driver} is loaded, but libcuda.so.1 was not found: {CAPABILITIES}")
            }
            (Some(driver), None) => format!(
                "driver {driver} is loaded, but libcuda.so.1 was not found: install the driver's libraries, or {CAPABILITIES}"
            ),
            (None, Some(_)) => format!(
                "there is no NVIDIA driver (libcuda.so.1 was not found): start the container with `--gpus all`, on a machine with \
                 driver {} or later and the NVIDIA Container Toolkit",
                driver_for(self.toolkit.unwrap_or(IMAGES[IMAGES.len() - 1].1))
            ),
            (None, None) => {
                "there is no NVIDIA driver (libcuda.so.1 was not found): install it, or start the container with \
                             `--gpus all`"
                    .to_owned()
            }
        }
    }

    /// Explains that NVRTC is missing.
    pub(super) fn no_nvrtc(&self) -> String {
        let remedy = if self.image.is_some() {
            self.image_advice(version(0, 0))
        } else {
            "install the CUDA toolkit and add its library folder to LD_LIBRARY_PATH".to_owned()
        };
        format!("NVRTC (libnvrtc.so) was not found: {remedy}")
    }

    /// Explains that NVRTC does not compile for a compute capability; `None` if its version is not the reason.
    pub(super) fn unknown_generation(&self, generation: &str) -> Option<String> {
        let toolkit = self.toolkit?;
        let (_, needed) = GENERATIONS.iter().find(|(name, _)| *name == generation)?;
        (toolkit < *needed).then(|| {
            format!(
                "NVRTC is of CUDA {toolkit}, but compute capability {generation} needs CUDA {needed}: {}",
                self.toolkit_advice(*needed)
            )
        })
    }

    /// Explains that the driver refuses a kernel.
    pub(super) fn refused_kernel(&self, error: &dyn fmt::Display) -> String {
        let Some(toolkit) = self.toolkit else {
            return format!("the driver refuses kernels of NVRTC ({error}): it may be older than the toolkit");
        };
        let supported = self.driver.as_deref().and_then(supported_by);
        let (Some(driver), Some(supported)) = (&self.driver, supported) else {
            return format!(
                "the driver refuses kernels of NVRTC {toolkit} ({error}): {}update the driver to {} or later",
                self.older_image(toolkit),
                driver_for(toolkit)
            );
        };
        if toolkit <= supported {
            return format!(
                "driver {driver} refuses kernels of NVRTC {toolkit} ({error}), although it supports CUDA {supported}: check nvidia-smi"
            );
        }
        let branch = driver_for(toolkit);
        let older = IMAGES.iter().find(|(_, cuda)| *cuda <= supported);
        let other = match older.filter(|_| self.image.is_some()) {
            Some((image, _)) => format!("take the image `{image}`"),
            None => format!("use NVRTC and headers of CUDA {supported} or earlier"),
        };
        format!(
            "NVRTC is of CUDA {toolkit}, but driver {driver} supports CUDA up to {supported}: {other}, or update the driver to {branch} \
             or later"
        )
    }

    /// Names the newest image whose toolkit is older than this version; empty outside images, and if there is none.
    fn older_image(&self, toolkit: CudaVersion) -> String {
        let older = IMAGES.iter().find(|(_, cuda)| *cuda < toolkit).filter(|_| self.image.is_some());
        older.map_or_else(String::new, |(image, _)| format!("take the image `{image}`, or "))
    }

    /// Names a toolkit of at least this version.
    fn toolkit_advice(&self, needed: CudaVersion) -> String {
        if self.image.is_some() && IMAGES.iter().any(|(_, cuda)| *cuda >= needed) {
            return self.image_advice(needed);
        }
        format!("install CUDA {needed} or later, which needs driver {} or later", driver_for(needed))
    }

    /// Names the image with at least this version that suits the driver, or the choice if the driver is unknown.
    fn image_advice(&self, needed: CudaVersion) -> String {
        let fitting = || IMAGES.iter().filter(|(_, cuda)| *cuda >= needed);
        let supported = self.driver.as_deref().and_then(supported_by);
        if let Some((image, _)) = fitting().find(|(_, cuda)| supported.is_some_and(|supported| *cuda <= supported)) {
            return format!("take the image `{image}`");
        }
        let choices: Vec<String> = fitting()
            .rev()
            .map(|(image, cuda)| format!("`{image}` for driver {} or later", driver_for(*cuda)))
            .collect();
        format!("take the image {}", choices.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation(toolkit: &str, driver: &str, image: &str) -> Situation {
        let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Situation { toolkit: toolkit.parse().ok(), driver: known(driver), image: known(image) }
    }

    #[test]
    fn driver_supports_the_version_of_its_branch() {
        let supported = |driver| supported_by(driver).map(|cuda| cuda.to_string());
        for (driver, cuda) in [
            ("535.104.05", "12.2"),
            ("550.54.15", "12.4"),
            ("565.57.01", "12.6"),
            ("575.51.03", "12.9"),
            ("590.44.01", "13.0"),
        ] {
            assert_eq!(supported(driver).as_deref(), Some(cuda), "{driver}");
        }
        assert_eq!((supported("390.1"), supported("unknown")), (None, None));
    }

    #[test]
    fn version_is_read_from_ptx() {
        let ptx = "//\n// Generated by NVIDIA NVVM Compiler\n//\n// Cuda compilation tools, release 12.4, V12.4.131\n.version 8.4\n";
        assert_eq!(version_in_ptx(ptx), Some(version(12, 4)));
        assert_eq!(version_in_ptx(".version 8.4\n"), None);
    }

    #[test]
    fn toolkit_newer_than_driver_names_both_and_an_image() {
        let text = situation("12.9", "550.54.15", "gpu-cuda12.9").refused_kernel(&"error");
        assert_eq!(
            text,
            "NVRTC is of CUDA 12.9, but driver 550.54.15 supports CUDA up to 12.4: take the image `gpu`, or update the driver to 575 \
             or later"
        );
        let text = situation("12.4", "535.104.05", "gpu-cuda12.4").refused_kernel(&"error");
        assert!(text.contains("use NVRTC and headers of CUDA 12.2 or earlier, or update the driver to 550"), "{text}");
        assert!(situation("12.4", "550.1", "").refused_kernel(&"X").contains("although it supports CUDA 12.4"));
        assert!(situation("", "", "").refused_kernel(&"X").contains("(X): it may be older"));
        let unknown = |image| situation("12.9", "", image).refused_kernel(&"X");
        assert!(unknown("gpu-cuda12.9").ends_with("(X): take the image `gpu`, or update the driver to 575 or later"));
        assert!(unknown("").ends_with("of NVRTC 12.9 (X): update the driver to 575 or later"));
    }

    #[test]
    fn card_newer_than_toolkit_names_the_image_to_take() {
        let image = |driver| situation("12.4", driver, "gpu-cuda12.4").unknown_generation("10.0").unwrap();
        assert!(image("580.65").ends_with("compute capability 10.0 needs CUDA 12.8: take the image `gpu-cuda12.9`"));
        assert!(
            image("570.26").ends_with("take the image `gpu-cuda12.9` for driver 575 or later"),
            "{}",
            image("570.26")
        );
        let outside = situation("12.4", "570.26", "").unknown_generation("12.0").unwrap();
        assert!(outside.ends_with("install CUDA 12.8 or later, which needs driver 570 or later"), "{outside}");
        assert_eq!(situation("12.4", "", "").unknown_generation("9.0"), None);
        assert_eq!(situation("", "", "").unknown_generation("10.0"), None);
        assert!(situation("12.9", "", "gpu").unknown_generation("11.0").unwrap().contains("install CUDA 13.0"));
    }

    #[test]
    fn missing_libraries_are_explained_for_the_place() {
        let text = situation("", "", "cpu").no_nvrtc();
        assert!(
            text.ends_with("take the image `gpu` for driver 550 or later, `gpu-cuda12.9` for driver 575 or later"),
            "{text}"
        );
        assert!(situation("", "560.1", "cpu").no_nvrtc().ends_with("take the image `gpu`"));
        assert!(situation("", "", "").no_nvrtc().contains("LD_LIBRARY_PATH"));
        assert!(situation("", "", "cpu").no_library().contains("`--gpus all`, on a machine with driver 550"));
        assert!(situation("12.9", "", "gpu-cuda12.9").no_library().contains("on a machine with driver 575"));
        assert!(situation("", "550.1", "gpu").no_library().contains("`compute` in NVIDIA_DRIVER_CAPABILITIES"));
        assert!(situation("", "", "").no_library().contains("install it"));
    }
}
