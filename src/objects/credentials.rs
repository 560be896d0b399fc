//! Origin of the S3 credentials, for people. The order is that of `object_store`, with the AWS profile after the environment.

use super::profile::{Profile, read_profile};

/// Describes where the S3 credentials of this process come from, and whether they end.
pub fn describe_s3_credentials() -> String {
    describe(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()), &read_profile())
}

fn describe(variable: &dyn Fn(&str) -> Option<String>, profile: &Profile) -> String {
    let is_set = |name| variable(name).is_some();
    if variable("AWS_SKIP_SIGNATURE").is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1") {
        return "none: requests are not signed (AWS_SKIP_SIGNATURE)".to_owned();
    }
    if is_set("AWS_ACCESS_KEY_ID") {
        let end = variable("AWS_CREDENTIAL_EXPIRATION").map_or_else(String::new, |end| format!(" until {end}"));
        let temporary = temporary(is_set("AWS_SESSION_TOKEN") || is_set("AWS_TOKEN"), &end);
        return format!("keys from the environment{temporary}");
    }
    if profile.access_key_id.is_some() {
        return format!("keys of the AWS profile{}", temporary(profile.session_token.is_some(), ""));
    }
    if is_set("AWS_WEB_IDENTITY_TOKEN_FILE") {
        return "role of the pod (AWS_WEB_IDENTITY_TOKEN_FILE), renewed".to_owned();
    }
    if is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return "role of the container (AWS_CONTAINER_CREDENTIALS_…_URI), renewed".to_owned();
    }
    "role of the machine, from its metadata service, renewed".to_owned()
}

/// Says that keys end and are not renewed. A run that outlives them stops with exit code 4 and can be resumed with new ones.
fn temporary(is_temporary: bool, end: &str) -> String {
    if !is_temporary {
        return String::new();
    }
    format!(
        ", temporary{end} and not renewed: if the run takes longer, it stops with exit code 4, and resumes with new keys"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(set: &[(&str, &str)], profile: &Profile) -> String {
        let variable = |name: &str| set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        describe(&variable, profile)
    }

    #[test]
    fn origin_follows_the_order_of_the_client() {
        let (none, keys) = (Profile::default(), ("AWS_ACCESS_KEY_ID", "A"));
        let profile = Profile { access_key_id: Some("B".to_owned()), ..Profile::default() };
        assert_eq!(described(&[keys, ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")], &profile), "keys from the environment");
        let text = described(
            &[keys, ("AWS_SESSION_TOKEN", "T"), ("AWS_CREDENTIAL_EXPIRATION", "2026-01-01T00:00:00Z")],
            &none,
        );
        assert!(
            text.contains("temporary until 2026-01-01T00:00:00Z and not renewed: if the run takes longer"),
            "{text}"
        );
        assert_eq!(described(&[], &profile), "keys of the AWS profile");
        assert!(described(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")], &none).starts_with("role of the pod"));
        assert!(described(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "u")], &none).starts_with("role of the container"));
        assert!(described(&[], &none).contains("metadata service"));
        assert!(described(&[keys, ("AWS_SKIP_SIGNATURE", "true")], &none).starts_with("none"));
    }
}
