//! Through which proxy, if any, the API server is asked: by Go's rules (golang.org/x/net/http/httpproxy), as every program
//! that is made of client-go does.
//!
//! One rule of theirs is left out, that of CGI programs.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper::http::HeaderValue;
use hyper_util::client::proxy::matcher::Matcher;
use ipnet::{IpNet, Ipv4Net};

/// What the environment says of proxies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Variables {
    https: Option<Given>,
    http: Option<Given>,
    no_proxy: String,
}

/// A variable that is set.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Given {
    name: &'static str,
    value: String,
}

/// How one speaks to a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scheme {
    /// HTTP CONNECT.
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS, version 5; the proxy looks names up.
    Socks5,
}

/// A proxy to be asked through.
#[derive(Clone)]
pub(super) struct Proxy {
    pub(super) scheme: Scheme,
    /// Without user and password.
    pub(super) url: Uri,
    /// For HTTP CONNECT.
    pub(super) basic_auth: Option<HeaderValue>,
    /// For SOCKS: user and password.
    pub(super) user: Option<(String, String)>,
    /// Who named it.
    named_by: String,
}

/// `http://192.0.2.1:3128/ (HTTPS_PROXY)`: no password is told.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url, self.named_by)
    }
}

/// What is named as a proxy cannot be one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unusable {
    /// It is no URL. Go takes no notice of such a variable.
    NoUrl(String),
    /// We do not speak what it asks for. Go fails with every request.
    Scheme(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUrl(named_by) => write!(f, "{named_by} is no URL; write http://ADDRESS:PORT"),
            Self::Scheme(named_by) => {
                write!(f, "{named_by} does not begin with http://, https://, socks5:// or socks5h://")
            }
        }
    }
}

impl Variables {
    /// Reads them. What is empty is as good as not there, and capitals come first.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            let given = |name| variable(name).map(|value| Given { name, value });
            names.into_iter().filter_map(given).find(|given| !given.value.is_empty())
        };
        Self {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            no_proxy: first(["NO_PROXY", "no_proxy"]).map(|given| given.value).unwrap_or_default(),
        }
    }

    /// The proxy for a URL. None: it is to be asked directly.
    pub(super) fn proxy_for(&self, url: &Uri) -> Result<Option<Proxy>, Unusable> {
        let (given, standard) = match url.scheme_str() {
            Some("https") => (&self.https, 443),
            Some("http") => (&self.http, 80),
            _ => return Ok(None),
        };
        let (Some(given), Some(host)) = (given, url.host()) else { return Ok(None) };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if is_exempt(host, url.port_u16().unwrap_or(standard), &self.no_proxy) {
            return Ok(None);
        }
        Proxy::parse(&given.value, given.name).map(Some)
    }
}

impl Proxy {
    /// Reads what somebody has named as a proxy; `http://` may be left out.
    pub(super) fn parse(text: &str, named_by: &str) -> Result<Self, Unusable> {
        let whole = |text: &str| {
            let url: Uri = text.parse().ok()?;
            url.scheme().and(url.host()).is_some_and(|host| !host.is_empty()).then_some(url)
        };
        let url = whole(text)
            .or_else(|| whole(&format!("http://{text}")))
            .ok_or_else(|| Unusable::NoUrl(named_by.to_owned()))?;
        let (scheme, standard) = match url.scheme_str().unwrap_or_default() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "socks5" | "socks5h" => (Scheme::Socks5, 1080),
            _ => return Err(Unusable::Scheme(named_by.to_owned())),
        };
        // It knows how user and password are written in a URL.
        let read =
            Matcher::builder().all(url.to_string()).build().intercept(&Uri::from_static("http://any/"));
        let read = read.ok_or_else(|| Unusable::NoUrl(named_by.to_owned()))?;
        let authority = match (read.uri().host(), read.uri().port_u16()) {
            (Some(host), port) => format!("{host}:{}", port.unwrap_or(standard)),
            (None, _) => return Err(Unusable::NoUrl(named_by.to_owned())),
        };
        let parts = Uri::builder().scheme(url.scheme_str().unwrap_or_default()).authority(authority);
        let url = parts.path_and_query("/").build().map_err(|_| Unusable::NoUrl(named_by.to_owned()))?;
        let owned = |(user, password): (&str, &str)| (user.to_owned(), password.to_owned());
        Ok(Self {
            scheme,
            url,
            basic_auth: read.basic_auth().cloned(),
            user: read.raw_auth().map(owned),
            named_by: named_by.to_owned(),
        })
    }
}

/// Whether `NO_PROXY` names a host and port, or nobody has to.
fn is_exempt(host: &str, port: u16, no_proxy: &str) -> bool {
    let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let host = host.to_ascii_lowercase();
    no_proxy.split(',').any(|entry| names(&entry.trim().to_ascii_lowercase(), &host, address, port))
}

/// Whether an entry of `NO_PROXY`, in small letters, names a host. An entry that means nothing names none.
fn names(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(net) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| to_canonical(net).contains(&address));
    }
    let (name, its_port) = split_host_port(entry).unwrap_or((entry, ""));
    let is_port = its_port.is_empty() || its_port == port.to_string();
    if let Ok(named) = name.parse::<IpAddr>() {
        return is_port && address == Some(named.to_canonical());
    }
    // `.example.com` and `*.example.com` are what lies below, `example.com` is itself as well.
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    if name.is_empty() || address.is_some() || !is_port {
        return false;
    }
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|front| front.ends_with('.')),
    }
}

/// A network of IPv4 addresses that is written as one of IPv6 addresses.
fn to_canonical(net: IpNet) -> IpNet {
    match (net.network().to_canonical(), net) {
        (IpAddr::V4(network), IpNet::V6(v6)) => {
            Ipv4Net::new(network, v6.prefix_len().saturating_sub(96)).map_or(net, IpNet::V4)
        }
        _ => net,
    }
}

/// As Go's `net.SplitHostPort`: none where there is no port, or an IPv6 address without brackets.
fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains([':', ']']) => return None,
        None => host,
    };
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &[(&str, &str)]) -> Variables {
        Variables::read(|name| set.iter().find(|(its, _)| *its == name).map(|(_, value)| (*value).to_owned()))
    }

    fn proxy(set: &[(&str, &str)], url: &str) -> String {
        match variables(set).proxy_for(&url.parse().unwrap()) {
            Ok(Some(proxy)) => proxy.to_string(),
            Ok(None) => "direct".to_owned(),
            Err(unusable) => unusable.to_string(),
        }
    }

    /// What golang.org/x/net/http/httpproxy answers, its own tests among them.
    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        let through = |no_proxy: &str, url: &str| {
            proxy(&[("HTTPS_PROXY", "p:1"), ("HTTP_PROXY", "p:1"), ("NO_PROXY", no_proxy)], url) != "direct"
        };
        let entries = "foobar.com, .barbaz.net,*.wild.net, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, \
                       2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:81, 2002:db8:a::45/64,\
                       [2001:db8::52:0:4], :443, port.net:6443, , .,";
        for (host, proxied) in [
            ("localhost", false),
            ("LOCALHOST", true),
            ("127.0.0.1", false),
            ("127.0.0.2", false),
            ("[::1]", false),
            ("[::ffff:127.0.0.1]", false),
            ("[::2]", true),
            ("192.168.1.1", false),
            ("192.168.1.2", true),
            ("192.168.1.2:81", false),
            ("192.168.1.3", true),
            ("192.168.1.4", true),
            ("10.0.0.2", false),
            ("[::ffff:10.0.0.2]", false),
            ("10.0.0.4", true),
            ("[2001:db8::52:0:1]", false),
            ("[2001:db8::52:0:2]", false),
            ("[2001:db8::52:0:3]", true),
            ("[2001:db8::52:0:4]", true),
            ("[2002:db8:a::123]", false),
            ("[fe80::424b:c8be:1643:a1b6]", true),
            ("barbaz.net", true),
            ("www.barbaz.net", false),
            ("wild.net", true),
            ("api.wild.net", false),
            ("foobar.com", false),
            ("www.foobar.com", false),
            ("FOOBAR.com", false),
            ("foofoobar.com", true),
            ("baz.com", true),
            ("localhost.net", true),
            ("port.net", true),
            ("port.net:6443", false),
            ("a.port.net:6443", false),
        ] {
            assert_eq!(through(entries, &format!("https://{host}/")), proxied, "{host}");
        }
        assert!(!through("192.168.1.3:80", "http://192.168.1.3/"), "the port that the scheme means");
        for all in ["*", "a,*", " * "] {
            assert!(!through(all, "https://192.0.2.1:6443/"), "{all:?}");
        }
        assert!(!through("::ffff:192.0.2.0/120", "https://192.0.2.1:6443/"));
        assert!(through("::/0", "https://192.0.2.1:6443/") && through("", "https://192.0.2.1:6443/"));
        assert!(through("192.0.2.0/33,192.0.2.01,**", "https://192.0.2.1:6443/"), "what means nothing");
    }

    #[test]
    fn the_variable_is_that_of_the_scheme_and_capitals_come_first() {
        let api = "https://192.0.2.1:6443/";
        let is = |set: &[(&str, &str)], url: &str, expected: &str| assert_eq!(proxy(set, url), expected);
        is(&[("HTTPS_PROXY", "http://p:3128"), ("https_proxy", "q")], api, "http://p:3128/ (HTTPS_PROXY)");
        is(&[("HTTPS_PROXY", ""), ("https_proxy", "q")], api, "http://q:80/ (https_proxy)");
        is(&[("HTTP_PROXY", "p"), ("ALL_PROXY", "p"), ("all_proxy", "p")], api, "direct");
        is(&[("HTTP_PROXY", "p")], "http://192.0.2.1:8080/", "http://p:80/ (HTTP_PROXY)");
        is(&[("HTTPS_PROXY", "p")], "http://192.0.2.1:8080/", "direct");
        is(&[("HTTPS_PROXY", "p"), ("NO_PROXY", ""), ("no_proxy", "192.0.2.1")], api, "direct");
    }

    #[test]
    fn a_proxy_is_read_with_its_standard_port_and_no_password_is_told() {
        let parsed = |text: &str| Proxy::parse(text, "V").map(|proxy| proxy.to_string());
        for (text, expected) in [
            ("127.0.0.1:3128", "http://127.0.0.1:3128/ (V)"),
            ("[2001:db8::1]:3128", "http://[2001:db8::1]:3128/ (V)"),
            ("https://p/path?query", "https://p:443/ (V)"),
            ("socks5h://p", "socks5h://p:1080/ (V)"),
            ("http://user:p%40ss@p:8080", "http://p:8080/ (V)"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["http://a b", "%"] {
            assert_eq!(parsed(text), Err(Unusable::NoUrl("V".to_owned())), "{text}");
        }
        assert_eq!(parsed("socks4://p"), Err(Unusable::Scheme("V".to_owned())));
        let proxy = Proxy::parse("http://user:p%40ss@p:8080", "V").ok().unwrap();
        assert_eq!(proxy.basic_auth.unwrap(), "Basic dXNlcjpwQHNz");
        let proxy = Proxy::parse("socks5://user:p%40ss@p", "V").ok().unwrap();
        assert_eq!(proxy.user, Some(("user".to_owned(), "p@ss".to_owned())));
    }
}
