//! The formats of addresses as data, which both implementations of the rules use: the schema in CEL (`rules::address`) and the
//! parser (`core::address`).

use super::Channel;

/// An E.164 number.
const NUMBER: &str = "an E.164 number: '+' and 2 to 15 digits without a leading zero";

/// The allowed format of the contact address on a channel.
pub(crate) const fn of_contact(channel: Channel) -> &'static str {
    match channel {
        Channel::Sms => {
            "an E.164 number ('+' and 2 to 15 digits without a leading zero), a short code of 3 to 6 digits, or a sender ID of at \
             most 11 letters, digits, inner spaces, '-', '+', '_' and '&', with at least one letter"
        }
        Channel::WhatsApp => {
            "an E.164 number ('+' and 2 to 15 digits without a leading zero) or a business-scoped user ID (two capital letters, \
             '.', and 1 to 128 letters or digits)"
        }
        Channel::Rcs => NUMBER,
        Channel::Messenger | Channel::Instagram | Channel::AppleMessages | Channel::Email | Channel::Chat => {
            of_proxy(channel)
        }
    }
}

/// The allowed format of the proxy address on a channel.
pub(crate) const fn of_proxy(channel: Channel) -> &'static str {
    match channel {
        Channel::Sms => {
            "an E.164 number ('+' and 2 to 15 digits without a leading zero), a short code of 3 to 8 digits, or a sender ID of at \
             most 11 letters, digits, inner spaces, '-', '+', '_' and '&', with at least one letter"
        }
        Channel::WhatsApp => NUMBER,
        Channel::Rcs => {
            "an E.164 number ('+' and 2 to 15 digits without a leading zero) or an agent ID: printable ASCII, no spaces, no '+' in \
             front, at most 256 characters"
        }
        Channel::Messenger | Channel::Instagram | Channel::AppleMessages => {
            "an ID issued by the platform: printable ASCII, no spaces, at most 256 characters"
        }
        Channel::Email => "lower-case local@domain, at most 254 characters",
        Channel::Chat => "an identity: printable ASCII, no leading or trailing space, at most 256 characters",
    }
}

/// The schemes that gateways and URIs put in front of an address, without the colon. They are case-insensitive. With a scheme, one
/// person would have two addresses. Other colons belong to the ID, as in `urn:mbid:…` of Apple.
pub(crate) const SCHEMES: [&str; 14] = [
    "applemessages",
    "callto",
    "chat",
    "email",
    "instagram",
    "mailto",
    "messenger",
    "mms",
    "mmsto",
    "rcs",
    "sms",
    "smsto",
    "tel",
    "whatsapp",
];

/// The schemes of a telephone number on any channel of telephones.
pub(crate) const NUMBER_SCHEMES: [&str; 2] = ["tel", "callto"];

/// The schemes of the channel itself. The scheme of another channel gets no proposal: either could be the mistake.
pub(crate) const fn own_schemes(channel: Channel) -> &'static [&'static str] {
    match channel {
        Channel::Sms => &["sms", "smsto", "mms", "mmsto"],
        Channel::WhatsApp => &["whatsapp"],
        Channel::Rcs => &["rcs"],
        Channel::Messenger => &["messenger"],
        Channel::Instagram => &["instagram"],
        Channel::AppleMessages => &["applemessages"],
        Channel::Email => &["mailto", "email"],
        Channel::Chat => &["chat"],
    }
}

/// Whether addresses on a channel are telephone numbers, or can be.
pub(crate) const fn is_telephone(channel: Channel) -> bool {
    matches!(channel, Channel::Sms | Channel::WhatsApp | Channel::Rcs)
}

/// The characters that people write between the digits of a telephone number.
pub(crate) const SEPARATORS: &str = " -.()/";

/// The country codes whose trunk prefix is 0 and whose numbers never start with 0, so that `+44 (0)20` is `+4420`. Source:
/// libphonenumber, which the tests compare. Not in the list: countries in which a 0 belongs to the number, such as Italy, and those in
/// which other digits can follow the 0 that do not belong to it either, such as Brazil.
pub(crate) const TRUNK_ZERO: [&str; 98] = [
    "20", "27", "31", "32", "33", "40", "41", "43", "44", "46", "49", "51", "53", "58", "60", "61", "62", "63", "64",
    "66", "81", "82", "84", "86", "90", "91", "92", "93", "94", "95", "98", "211", "212", "213", "218", "231", "232",
    "233", "234", "243", "249", "251", "252", "254", "255", "256", "260", "262", "263", "264", "265", "291", "353",
    "355", "358", "359", "370", "373", "374", "377", "380", "381", "382", "383", "385", "386", "387", "389", "421",
    "423", "508", "590", "591", "593", "594", "595", "596", "598", "686", "850", "855", "856", "880", "886", "961",
    "962", "963", "964", "966", "967", "970", "971", "972", "976", "977", "994", "995", "996",
];

/// The other beginnings of numbers that need knowledge of the country: a trunk prefix, a carrier code or a mobile prefix that does not
/// belong to the number, or a missing area code. Such a number gets no proposal. Source: libphonenumber, which the tests compare.
pub(crate) const UNCLEAR: [&str; 29] = [
    "11", "2410", "2500", "261", "29810", "35215", "3606", "3708", "3750", "3758", "378", "4231001", "50619", "540",
    "541", "542", "543", "550", "5590", "570", "5911", "672", "6921", "78", "828", "8611", "8612", "86179", "9938",
];

/// The ranges of characters that cannot be seen, or look like ASCII. Messages name them by their code point.
pub(crate) const UNSEEN: [(char, char); 20] = [
    ('\0', '\x1f'),
    ('\x7f', '\x7f'),
    ('\u{85}', '\u{85}'),
    ('\u{a0}', '\u{a0}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{2000}', '\u{2015}'),
    ('\u{2028}', '\u{202f}'),
    ('\u{205f}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe0e}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ff0b}', '\u{ff19}'),
    ('\u{ffa0}', '\u{ffa0}'),
];
