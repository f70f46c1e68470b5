//! Certificates, tokens and kubeconfig files of one API server.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rcgen::{KeyUsagePurpose, SanType};

/// Who a client is to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// May do everything.
    Admin,
    /// The ServiceAccount of deploy/base/rbac.yaml, with the rights granted there.
    Agent,
    /// Known, without any right.
    Nobody,
}

impl Identity {
    /// Everybody the API server knows.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Agent, Self::Nobody];

    /// Name for files and users of kubeconfig.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Agent => "agent",
            Self::Nobody => "nobody",
        }
    }

    /// Its line of the token file: token, user, user id, groups.
    fn token_line(self) -> String {
        let (user, groups) = match self {
            Self::Admin => ("admin", "system:masters"),
            Self::Agent => ("system:serviceaccount:shunt-system:shunt", "system:serviceaccounts"),
            Self::Nobody => ("nobody", ""),
        };
        let (name, token) = (self.name(), self.token());
        match groups {
            "" => format!("{token},{user},{name}\n"),
            groups => format!("{token},{user},{name},\"{groups}\"\n"),
        }
    }

    /// What it shows to the server.
    pub(super) fn token(self) -> String {
        format!("token-of-{}", self.name())
    }
}

/// Writes `tls.crt`, `tls.key`, `ca.crt`, `accounts.key` and `.pub` (for ServiceAccount tokens) and `tokens.csv` into the folder.
pub fn write(folder: &Path, addresses: &[IpAddr]) -> Result<()> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "shunt test CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().into_diagnostic()?).into_diagnostic()?;

    let key = KeyPair::generate().into_diagnostic()?;
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from);
    let mut server = CertificateParams::new(names).into_diagnostic()?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.subject_alt_names.extend(addresses.iter().map(|&address| SanType::IpAddress(address)));
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = server.signed_by(&key, &ca).into_diagnostic()?;

    put(folder, "ca.crt", &ca.pem())?;
    put(folder, "tls.crt", &certificate.pem())?;
    put(folder, "tls.key", &key.serialize_pem())?;
    let accounts = KeyPair::generate().into_diagnostic()?;
    put(folder, "accounts.key", &accounts.serialize_pem())?;
    put(folder, "accounts.pub", &accounts.public_key_pem())?;
    put(folder, "tokens.csv", &Identity::ALL.map(Identity::token_line).concat())
}

/// A kubeconfig file for this client. `authority` is the path of the CA's certificate.
pub fn kubeconfig(identity: Identity, url: &str, authority: &Path) -> String {
    let (name, token) = (identity.name(), identity.token());
    let authority = authority.display();
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster: {{ server: \"{url}\", certificate-authority: \"{authority}\" }}\n\
         users:\n- name: {name}\n  user: {{ token: {token} }}\n\
         contexts:\n- name: test\n  context: {{ cluster: test, user: {name} }}\n"
    )
}

pub(super) fn put(folder: &Path, name: &str, content: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, content).into_diagnostic().wrap_err_with(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_the_service_account_that_the_manifests_bind() {
        let rbac = include_str!("../../../deploy/base/rbac.yaml");
        assert!(rbac.contains("name: shunt\n    namespace: shunt-system"));
        assert!(Identity::Agent.token_line().contains(",system:serviceaccount:shunt-system:shunt,"));
    }

    #[test]
    fn nobody_has_no_groups() {
        assert_eq!(Identity::Nobody.token_line(), "token-of-nobody,nobody,nobody\n");
    }
}
