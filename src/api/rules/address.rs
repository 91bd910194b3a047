//! The rule of an address by channel and side, in CEL. `core::address` implements the same rule; the tests compare both, and their
//! messages, on the same data.
//!
//! CEL has no variables here, and the API server rejects an expression whose cost it cannot bound. So expressions are repeated where
//! they are used, and numbers become text by a table of digits.

use super::at;
use crate::api::Channel;
use crate::api::address_format::{
    NUMBER_SCHEMES, SCHEMES, SEPARATORS, TRUNK_ZERO, UNCLEAR, UNSEEN, is_telephone, of_contact, of_proxy, own_schemes,
};
use serde_json::{Value, json};
use strum::VariantArray;

/// A side of a conversation.
pub(in crate::api) struct Side {
    /// Its name in messages.
    name: &'static str,
    /// The error code of an invalid address.
    code: &'static str,
    is_proxy: bool,
}

/// The contact.
pub(in crate::api) const CONTACT: Side = Side { name: "contact", code: "48025", is_proxy: false };
/// The business.
pub(in crate::api) const PROXY: Side = Side { name: "proxy", code: "48026", is_proxy: true };

/// An E.164 number: `+` and 2 to 15 digits, without a leading zero.
const E164: &str = r"\+[1-9][0-9]{1,14}";
/// A character of an alphanumeric sender ID on SMS, except for a space.
const SENDER: &str = "[0-9A-Za-z+_&-]";
/// A business-scoped user ID of WhatsApp.
const USER_ID: &str = r"[A-Z]{2}\.[0-9A-Za-z]{1,128}";
/// An agent ID of RCS. It does not start with `+`, so that no misspelled number is taken for one.
const AGENT_ID: &str = "[!-*,-~][!-~]{0,255}";
/// An ID issued by a platform: printable ASCII without spaces.
const OPAQUE_ID: &str = "[!-~]{1,256}";
/// Lower-case `local@domain`: a dot-atom of RFC 5322 and a host name. The 254 characters of RFC 5321 are checked beside it.
const EMAIL: &str = r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*";

/// The rule of the address in the field `address` of `self`, on the channel in the field `channel`. Both are paths below `self`, such as
/// `proxy.address`. A parent of the address may be absent.
///
/// It judges no address that is stored already, so that what an earlier version admitted stays editable. The API server's own
/// ratcheting does not suffice: it applies to the node that has the rule, here the whole spec, because only there is the channel
/// known; and it warns at every change of anything else.
pub(in crate::api) fn rule(side: &Side, channel: &str, address: &str) -> Value {
    let field = Field { side, channel: format!("self.{channel}"), address: format!("self.{address}") };
    let parent = address.rsplit_once('.').map(|(parent, _)| parent);
    let is_absent = parent.map(|parent| format!("!has(self.{parent}) || ")).unwrap_or_default();
    let was_present = parent.map(|parent| format!("has(oldSelf.value().{parent}) && ")).unwrap_or_default();
    let is_stored = format!(
        "(oldSelf.hasValue() && {was_present}oldSelf.value().{channel} == {} \
         && oldSelf.value().{address} == {})",
        field.channel, field.address
    );
    let rule = json!({
        "rule": format!("{is_absent}{is_stored} || ({})", field.is_valid()),
        "message": format!("{}: the {} address must be valid for the channel", side.code, side.name),
        "messageExpression": field.message(),
        "optionalOldSelf": true,
    });
    at(&format!(".{address}"), rule)
}

/// An address, as CEL expressions.
struct Field<'a> {
    side: &'a Side,
    channel: String,
    address: String,
}

impl Field<'_> {
    /// Whether the address is valid on its channel.
    fn is_valid(&self) -> String {
        let Self { channel, address, .. } = self;
        let number_or_code = format!("^(?:{E164}|{})$", self.short_code());
        format!(
            "{} && !{} && ({channel} != 'SMS' || {} || {}) && ({channel} != 'Email' || {address}.size() <= 254)",
            self.matches(&by_channel(|channel| self.format(channel))),
            has_scheme(address),
            matches(address, "[A-Za-z]"),
            matches(address, &number_or_code),
        )
    }

    /// The format on a channel as a regular expression.
    fn format(&self, channel: Channel) -> String {
        match channel {
            Channel::Sms => format!("{E164}|{}|{SENDER}(?:[0-9A-Za-z+_& -]{{0,9}}{SENDER})?", self.short_code()),
            Channel::WhatsApp if !self.side.is_proxy => format!("{E164}|{USER_ID}"),
            Channel::Rcs if self.side.is_proxy => format!("{E164}|{AGENT_ID}"),
            Channel::WhatsApp | Channel::Rcs => E164.to_owned(),
            Channel::Messenger | Channel::Instagram | Channel::AppleMessages => OPAQUE_ID.to_owned(),
            Channel::Email => EMAIL.to_owned(),
            Channel::Chat => super::IDENTITY.to_owned(),
        }
    }

    /// A short code on SMS.
    fn short_code(&self) -> String {
        format!("[0-9]{{3,{}}}", if self.side.is_proxy { 8 } else { 6 })
    }

    /// Whether `CHANNEL|ADDRESS` matches `pattern`.
    fn matches(&self, pattern: &str) -> String {
        let Self { channel, address, .. } = self;
        matches(&format!("({channel} + '|' + {address})"), pattern)
    }

    /// The message: the format on the channel, the mistake if it is known, and the canonical spelling if it can be computed.
    fn message(&self) -> String {
        let Self { side: Side { name, code, .. }, address, .. } = self;
        format!(
            "'{code}: the {name} address must be ' + {} + ({} ? {} : (({} ? {} : '') + {}))",
            self.allowed(),
            matches(address, "[^ -~]"),
            self.unexpected_character(),
            has_scheme(address),
            string("; it must have no scheme such as 'tel:' in front"),
            self.proposal(),
        )
    }

    /// The allowed format in words.
    fn allowed(&self) -> String {
        let of_side = if self.side.is_proxy { of_proxy } else { of_contact };
        let channels = Channel::VARIANTS.iter().rev();
        channels.fold(String::new(), |others, channel| {
            let words = string(of_side(*channel));
            if others.is_empty() {
                words
            } else {
                format!("({} == '{}' ? {words} : {others})", self.channel, channel.as_str())
            }
        })
    }

    /// The first character that is not printable ASCII, and its position.
    fn unexpected_character(&self) -> String {
        let address = &self.address;
        let character = format!("{address}.find('[^ -~]')");
        let unseen = || UNSEEN.iter().flat_map(|(first, last)| *first..=*last);
        let table = unseen().map(|character| format!("\\u{:04x}", u32::from(character))).collect::<Vec<_>>().concat();
        let names = unseen().map(|character| format!("{:04X}", u32::from(character))).collect::<Vec<_>>().concat();
        let ranges =
            UNSEEN.iter().map(|(first, last)| format!(r"\x{{{:x}}}-\x{{{:x}}}", u32::from(*first), u32::from(*last)));
        let is_unseen = matches(&character, &format!("[{}]", ranges.collect::<String>()));
        let index = format!("'{table}'.indexOf({character}) * 4");
        let name =
            format!("({is_unseen} ? 'U+' + '{names}'.substring({index}, {index} + 4) : \"'\" + {character} + \"'\")");
        let position = format!("({address}.indexOf({character}) + 1)");
        let digit = |digit: &str| format!("'0123456789'.substring({digit}, {digit} + 1)");
        let position = format!(
            "({position} >= 100 ? {} : '') + ({position} >= 10 ? {} : '') + {}",
            digit(&format!("{position} / 100")),
            digit(&format!("{position} / 10 % 10")),
            digit(&format!("{position} % 10")),
        );
        let domain = string("; spell an internationalized domain in punycode (xn--…)");
        let in_domain = format!("({} && !{is_unseen} ? {domain} : '')", self.matches(r"^Email\|[ -~]*@[ -~]*[^ -~]"));
        format!("'; it has ' + {name} + ' at position ' + {position} + {in_domain}")
    }

    /// The canonical spelling, if it can be computed.
    fn proposal(&self) -> String {
        let Self { channel, address, .. } = self;
        let optional_schemes = |channel: Channel| {
            let schemes = own_schemes(channel).iter().chain(&NUMBER_SCHEMES).copied().collect::<Vec<_>>();
            format!("(?i:(?:{}):)?", schemes.join("|"))
        };
        let spelled_out = format!(r"[ (]*\+[0-9{}]*", SEPARATORS.replace('-', r"\-"));
        let is_number = by_channel(|channel| {
            if is_telephone(channel) { format!("{}{spelled_out}", optional_schemes(channel)) } else { String::new() }
        });
        // `~` stands for a bracketed trunk prefix.
        let marked = SEPARATORS.chars().fold(
            format!("{address}.substring({address}.indexOf('+')).replace('(0)', '~', 1)"),
            |number, separator| format!("{number}.replace('{separator}', '')"),
        );
        let number = format!("{marked}.replace('~', '')");
        let trunk_zero = TRUNK_ZERO.join("|");
        let is_clear = format!(
            "{} && {} && !{} && !{}",
            matches(&marked, &format!(r"^\+(?:[0-9]+|(?:{trunk_zero})~[0-9]+)$")),
            matches(&number, &format!("^{E164}$")),
            matches(&number, &format!(r"^\+(?:(?:{trunk_zero})0|{})", UNCLEAR.join("|"))),
            matches(address, "/ *[0-9]{1,3} *$"),
        );
        // A URI can have escapes and parameters after the address.
        let is_uri = matches(address, "[%?]");
        let with_scheme = by_channel(|channel| {
            let format = match channel {
                // A number with letters can be meant.
                Channel::Sms => format!("{}|[A-Za-z](?:[0-9A-Za-z+_& -]{{0,9}}{SENDER})?", self.short_code()),
                Channel::WhatsApp if !self.side.is_proxy => USER_ID.to_owned(),
                Channel::Rcs if self.side.is_proxy => AGENT_ID.to_owned(),
                Channel::WhatsApp | Channel::Rcs | Channel::Email => return String::new(),
                _ => self.format(channel),
            };
            format!("(?i:(?:{}):)(?:{format})", own_schemes(channel).join("|"))
        });
        let two_schemes = matches(address, &format!("^(?i:[a-z]+:(?:{}):)", SCHEMES.join("|")));
        let without_scheme = format!("{address}.substring({address}.indexOf(':') + 1)");
        let mail_scheme = own_schemes(Channel::Email).join("|");
        let mailbox =
            format!("{address}.substring({address}.find('^(?i:(?:{mail_scheme}):)').size()).trim().lowerAscii()");
        format!(
            "({} && {is_clear} ? '; write ' + {number} : ({} && !{two_schemes} && !{is_uri} ? '; write ' + {without_scheme} : \
             ({channel} == 'Email' && {} && {mailbox}.size() <= 254 && !({} && {is_uri}) ? '; write ' + {mailbox} : '')))",
            self.matches(&is_number),
            self.matches(&with_scheme),
            matches(&mailbox, &format!("^{EMAIL}$")),
            has_scheme(address),
        )
    }
}

/// A pattern for `CHANNEL|ADDRESS`, from the pattern of the address on each channel.
fn by_channel(pattern: impl Fn(Channel) -> String) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for channel in Channel::VARIANTS {
        let pattern = pattern(*channel);
        match groups.iter_mut().find(|(known, _)| *known == pattern) {
            Some((_, channels)) => channels.push(channel.as_str()),
            None => groups.push((pattern, vec![channel.as_str()])),
        }
    }
    let groups = groups.iter().filter(|(pattern, _)| !pattern.is_empty());
    let groups = groups.map(|(pattern, channels)| format!(r"(?:{})\|(?:{pattern})", channels.join("|")));
    format!("^(?:{})$", groups.collect::<Vec<_>>().join("|"))
}

/// Whether the expression `text` matches `pattern`.
fn matches(text: &str, pattern: &str) -> String {
    format!("{text}.matches({})", string(pattern))
}

/// Whether `address` starts with a scheme.
fn has_scheme(address: &str) -> String {
    matches(address, &format!("^(?i:(?:{}):)", SCHEMES.join("|")))
}

/// A string in CEL.
fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}
