//! Tokens signed with a key of our own, where there is no Kubernetes: a laptop, a VM, a test.

use std::time::{Duration, SystemTime};

use heddle_policy::names::check_dns_name;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, TokenData, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use super::{Agent, Attest, AttestError, Attesting};
use crate::cli::ca::AUDIENCE;

/// Who signs them.
const ISSUER: &str = "heddle-agents-key";
/// Whom they are for.
const SUBJECT: &str = "agent";
/// The longest that one may be valid.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    exp: u64,
    node: String,
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Signs a token for the agent of a node. `key`: PKCS #8 in PEM.
///
/// # Errors
/// A key that is none, or a node that cannot have that name.
pub fn sign(key: &[u8], node: &str, lifetime: Duration, now: SystemTime) -> Result<String, String> {
    check_dns_name(node).map_err(|error| format!("`{node}` is no node: {error}"))?;
    if lifetime > LONGEST {
        return Err("a token is valid for a year at most".to_owned());
    }
    let key = EncodingKey::from_ec_pem(key).map_err(|error| format!("the key cannot be used: {error}"))?;
    let claims = Claims {
        iss: ISSUER.into(),
        sub: SUBJECT.into(),
        aud: AUDIENCE.into(),
        iat: seconds(now),
        exp: seconds(now + lifetime),
        node: node.into(),
    };
    encode(&Header::new(Algorithm::ES256), &claims, &key).map_err(|error| error.to_string())
}

/// Believes whatever one key has signed.
pub struct SignedTokens {
    key: DecodingKey,
    skew: Duration,
}

impl std::fmt::Debug for SignedTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignedTokens")
    }
}

impl SignedTokens {
    /// `key`: a public key on P-256 in PEM.
    ///
    /// # Errors
    /// Something else.
    pub fn new(key: &[u8], skew: Duration) -> Result<Self, String> {
        let key = DecodingKey::from_ec_pem(key).map_err(|error| error.to_string())?;
        Ok(Self { key, skew })
    }

    fn verify(&self, token: &str, now: SystemTime) -> Result<Agent, AttestError> {
        let refused = |why: String| AttestError::Refused(format!("the token is not believed: {why}"));
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        rules.sub = Some(SUBJECT.to_owned());
        // Time is an argument here: both dates are judged below.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        let TokenData { claims, .. } =
            decode::<Claims>(token, &self.key, &rules).map_err(|error| refused(error.to_string()))?;
        let (now, skew) = (seconds(now), self.skew.as_secs());
        if claims.exp.saturating_add(skew) <= now {
            return Err(refused("it has expired".to_owned()));
        }
        if claims.iat > now.saturating_add(skew) {
            return Err(refused("it is from the future: are the clocks right?".to_owned()));
        }
        if claims.exp.saturating_sub(claims.iat) > LONGEST.as_secs() {
            return Err(refused("it is valid for longer than a year".to_owned()));
        }
        check_dns_name(&claims.node).map_err(|error| refused(format!("its node: {error}")))?;
        Ok(Agent { name: format!("agent of {}", claims.node), node: claims.node })
    }
}

impl Attest for SignedTokens {
    fn attest<'a>(&'a self, token: &'a str, now: SystemTime) -> Attesting<'a> {
        Box::pin(std::future::ready(self.verify(token, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::KeyPair;

    fn hour() -> Duration {
        Duration::from_secs(3600)
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn claims() -> serde_json::Value {
        serde_json::json!({
            "iss": ISSUER, "sub": SUBJECT, "aud": AUDIENCE, "iat": seconds(start()), "exp": seconds(start() + hour()), "node": "a",
        })
    }

    fn signed(header: &Header, claims: &serde_json::Value, key: &KeyPair) -> String {
        encode(header, claims, &EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_token_proves_its_node_until_it_expires() {
        let key = KeyPair::generate().unwrap();
        let tokens = SignedTokens::new(key.public_key_pem().as_bytes(), Duration::from_secs(20)).unwrap();
        let token = sign(key.serialize_pem().as_bytes(), "a", hour(), start()).unwrap();
        let agent = Agent { name: "agent of a".into(), node: "a".into() };
        for at in [start() - Duration::from_secs(19), start(), start() + hour() + Duration::from_secs(19)] {
            assert_eq!(tokens.verify(&token, at), Ok(agent.clone()));
        }
        for at in [start() - Duration::from_secs(21), start() + hour() + Duration::from_secs(21)] {
            assert!(matches!(tokens.verify(&token, at), Err(AttestError::Refused(_))));
        }
        sign(key.serialize_pem().as_bytes(), "A node", hour(), start()).unwrap_err();
        sign(b"no key", "a", hour(), start()).unwrap_err();
    }

    #[test]
    fn whatever_differs_is_refused() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let tokens = SignedTokens::new(key.public_key_pem().as_bytes(), Duration::from_secs(20)).unwrap();
        let es256 = Header::new(Algorithm::ES256);
        tokens.verify(&signed(&es256, &claims(), &key), start()).unwrap();
        tokens.verify(&signed(&es256, &claims(), &other), start()).unwrap_err();
        let changes: [(&str, Option<serde_json::Value>); 12] = [
            ("aud", Some("identity.l5d.io".into())),
            ("aud", Some(serde_json::json!([AUDIENCE, "other"]))),
            ("aud", None),
            ("iss", Some("somebody".into())),
            ("iss", None),
            ("sub", Some("pod".into())),
            ("sub", None),
            ("exp", None),
            ("exp", Some(serde_json::json!(seconds(start() + 500 * 24 * hour())))),
            ("node", None),
            ("node", Some("A".into())),
            ("more", Some("x".into())),
        ];
        for (claim, value) in changes {
            let mut changed = claims();
            match &value {
                Some(value) => changed[claim] = value.clone(),
                None => drop(changed.as_object_mut().unwrap().remove(claim)),
            }
            let refused = tokens.verify(&signed(&es256, &changed, &key), start());
            assert!(matches!(refused, Err(AttestError::Refused(_))), "{claim} {value:?}: {refused:?}");
        }
        // No signature at all, and one that takes the public key for a secret.
        let good = signed(&es256, &claims(), &key);
        let body = good.split('.').nth(1).unwrap();
        for unsigned in
            [format!("eyJhbGciOiJub25lIn0.{body}."), format!("eyJhbGciOiJub25lIn0.{body}"), body.into()]
        {
            tokens.verify(&unsigned, start()).unwrap_err();
        }
        let secret = EncodingKey::from_secret(key.public_key_pem().as_bytes());
        let hmac = encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap();
        tokens.verify(&hmac, start()).unwrap_err();
    }
}
