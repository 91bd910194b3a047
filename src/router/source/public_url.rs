//! The URL that Twilio calls, and the spellings of it that Twilio may have signed.

use hyper::Uri;

/// The URL that a provider calls, as the administrator entered it there. Proxies between the provider and the router can change the scheme,
/// the host and the path, so the request does not tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicUrl {
    /// Without the port and with it.
    origins: [String; 2],
    path: String,
    query: Option<String>,
    fragment: Option<String>,
}

/// A text that is not the URL of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "publicURL {0}; set it to the URL that the provider calls, character by character, such as https://hooks.example.com/v1/sources/sms"
)]
pub struct InvalidPublicUrl(&'static str);

impl PublicUrl {
    /// Parses an absolute URL of scheme `https` or `http`. It may have a port, a query and a fragment.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPublicUrl> {
        if text.is_empty() {
            return Err(InvalidPublicUrl("is missing"));
        }
        let (address, fragment) = text.split_once('#').map_or((text, None), |(url, fragment)| (url, Some(fragment)));
        let uri: Uri = address.parse().map_err(|_| InvalidPublicUrl("is not a URL"))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("https") => ("https", "443"),
            Some("http") => ("http", "80"),
            _ => return Err(InvalidPublicUrl("must start with https:// or http://")),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = uri.port().map(|port| port.as_str().to_owned());
        let host = port.as_ref().and_then(|port| authority.strip_suffix(port)?.strip_suffix(':')).unwrap_or(authority);
        let target = address.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")?.strip_prefix(authority));
        let (Some(target), false) = (target, host.is_empty() || host.ends_with(':')) else {
            return Err(InvalidPublicUrl("must start with the scheme in lower case and a host"));
        };
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let origin = format!("{scheme}://{host}");
        let port = port.unwrap_or_else(|| default_port.to_owned());
        Ok(Self {
            origins: [origin.clone(), format!("{origin}:{port}")],
            path: path.to_owned(),
            query: query.map(str::to_owned),
            fragment: fragment.map(str::to_owned),
        })
    }

    /// Whether the fragment tells Twilio to send a request again that was answered with an error: `rc` is the number of times, and `rp` what
    /// for. Source: <https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides>
    pub(super) fn repeats(&self) -> bool {
        let parameters = || self.fragment.iter().flat_map(|fragment| fragment.split('&'));
        let value = |name: &str| parameters().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let is_repeated = value("rc").is_some_and(|count| count != "0");
        is_repeated && value("rp").is_some_and(|what| what.split(',').any(|what| matches!(what, "all" | "5xx")))
    }

    /// The query of the URL that was called: that of the request, since each number can have its own; or the configured one, if a proxy
    /// removes it.
    pub(super) fn query<'a>(&'a self, of_request: Option<&'a str>) -> Option<&'a str> {
        of_request.or(self.query.as_deref())
    }

    /// The spellings of the URL with `query` that may have been signed: without a port and with it, without the fragment and with it. The
    /// fragment, in which Twilio reads connection overrides, is not part of a request.
    pub(super) fn spellings(&self, query: Option<&str>) -> Vec<String> {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let fragments = [Some(String::new()), self.fragment.as_ref().map(|fragment| format!("#{fragment}"))];
        let endings = fragments.into_iter().flatten().map(|fragment| format!("{}{query}{fragment}", self.path));
        endings.flat_map(|ending| self.origins.each_ref().map(|origin| format!("{origin}{ending}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_has_each_spelling_that_may_be_signed() {
        for (url, query, spellings) in [
            ("https://a.example/in", None, &["https://a.example/in", "https://a.example:443/in"][..]),
            ("http://a.example", Some("b=%20"), &["http://a.example?b=%20", "http://a.example:80?b=%20"]),
            ("https://a.example:8443/in?b=1", None, &["https://a.example/in?b=1", "https://a.example:8443/in?b=1"]),
            ("https://a.example/in?b=1", Some("b=2"), &["https://a.example/in?b=2", "https://a.example:443/in?b=2"]),
            ("https://u:p@[::1]:8443/", Some(""), &["https://u:p@[::1]/?", "https://u:p@[::1]:8443/?"]),
            ("https://A.example/%2f/", None, &["https://A.example/%2f/", "https://A.example:443/%2f/"]),
            (
                "https://a.example/in#rc=5&rp=all",
                Some("b"),
                &[
                    "https://a.example/in?b",
                    "https://a.example:443/in?b",
                    "https://a.example/in?b#rc=5&rp=all",
                    "https://a.example:443/in?b#rc=5&rp=all",
                ],
            ),
        ] {
            let url = PublicUrl::parse(url).unwrap();
            assert_eq!(url.spellings(url.query(query)), spellings);
        }
    }

    #[test]
    fn relative_or_incomplete_url_is_refused() {
        for (text, reason) in [
            ("", "is missing"),
            ("/v1/sources/sms", "must start with https:// or http://"),
            ("ftp://a.example/", "must start with https:// or http://"),
            ("a.example", "must start with https:// or http://"),
            ("HTTPS://a.example/", "must start with the scheme in lower case"),
            ("https://a.example:/", "must start with the scheme in lower case and a host"),
            ("https://", "is not a URL"),
            ("https://a.example/ b", "is not a URL"),
        ] {
            let error = PublicUrl::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("publicURL {reason}")), "{text:?}: {error}");
        }
    }
}
