//! Reads the AWS profile from `~/.aws/credentials` and `~/.aws/config`, which `object_store` does not read.
//!
//! It reads static keys, region and endpoint of the profile named by `AWS_PROFILE` (or `default`). Profiles that obtain their
//! keys elsewhere (SSO, an assumed role) need a tool that puts the keys into the environment. Source: the "Shared config and
//! credentials files" page of the AWS SDKs and Tools Reference Guide.

use std::path::PathBuf;

/// Settings of a profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint_url: Option<String>,
}

/// Reads the profile of this environment; missing files add nothing.
pub(super) fn read_profile() -> Profile {
    let name = std::env::var("AWS_PROFILE").or_else(|_| std::env::var("AWS_DEFAULT_PROFILE"));
    let name = name.unwrap_or_else(|_| "default".to_owned());
    let file = |variable: &str, own: &str| {
        let path = std::env::var_os(variable)
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".aws").join(own)));
        path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
    };
    let mut profile = Profile::default();
    // `config` heads every profile except the default one `[profile NAME]`. `credentials` is read last and so wins.
    parse(&file("AWS_CONFIG_FILE", "config"), &[&name, &format!("profile {name}")], &mut profile);
    parse(&file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), &[&name], &mut profile);
    profile
}

fn parse(text: &str, sections: &[&str], profile: &mut Profile) {
    let mut inside = false;
    for line in text.lines() {
        // Indented lines are nested settings of one service.
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            inside = sections.contains(&section.trim());
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';'])) else {
            continue;
        };
        let value = Some(value.trim().to_owned());
        match key.trim() {
            "aws_access_key_id" => profile.access_key_id = value,
            "aws_secret_access_key" => profile.secret_access_key = value,
            "aws_session_token" => profile.session_token = value,
            "region" => profile.region = value,
            "endpoint_url" => profile.endpoint_url = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_merges_both_files() {
        let mut profile = Profile::default();
        let config = "[default]\nregion = us-west-2\n[profile lab]\nregion=eu-central-1\nendpoint_url = http://minio:9000\ns3 =\n  endpoint_url = http://other\n";
        parse(config, &["lab", "profile lab"], &mut profile);
        let credentials =
            "# keys\n[default]\naws_access_key_id=A\n\n[lab]\naws_access_key_id = B\naws_secret_access_key = a/b+c=\n";
        parse(credentials, &["lab"], &mut profile);
        assert_eq!(profile.region.as_deref(), Some("eu-central-1"));
        assert_eq!(profile.endpoint_url.as_deref(), Some("http://minio:9000"));
        assert_eq!(
            (profile.access_key_id.as_deref(), profile.secret_access_key.as_deref()),
            (Some("B"), Some("a/b+c="))
        );
        assert_eq!(profile.session_token, None);
    }
}
