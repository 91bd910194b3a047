"""Makes and checks messages by the libraries of others. Reads JSON from standard input, and writes JSON to standard output.

sign    {url, token, sharedKey, appSecret, contact, proxy} -> [{name, source, headers, body, ok}]: requests as Twilio and Meta send them, and forged ones
verify  {secret, events: [{headers, body}]} -> [{id, source, type, subject, data}]: the events, as a sink reads them
"""

import hashlib
import hmac
import json
import sys
from urllib.parse import parse_qsl, urlencode

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from multidict import MultiDict
from pywa import WhatsApp
from pywa.types import Message
from pywa.utils import webhook_updates_validator
from standardwebhooks import Webhook
from twilio.request_validator import RequestValidator


def twilio(given, name, parameters, ok=True, signed=None, shared_key=None):
    pairs = lambda of: MultiDict(parse_qsl(urlencode(of, doseq=True), keep_blank_values=True))
    headers = {"content-type": "application/x-www-form-urlencoded"}
    token, algorithm = given["token"], None
    if shared_key:
        token, algorithm = given["sharedKey"], "HMAC_SHA256"
        headers["x-twilio-webhooks-signature-settings"] = f"key={shared_key},algorithm={algorithm}"
    headers["x-twilio-signature"] = RequestValidator(token).compute_signature(given["url"], pairs(signed or parameters), algorithm)
    return {"name": name, "source": "twilio", "headers": headers, "body": urlencode(parameters, doseq=True), "ok": ok}


def meta(given, name, messages, ok=True):
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": given["proxy"].lstrip("+"), "phone_number_id": "106540352242922"},
        "contacts": [{"profile": {"name": "Alice"}, "wa_id": given["contact"].lstrip("+"), "user_id": "US.13491208655302741918"}],
        "messages": messages,
    }
    entry = {"id": "102290129340398", "changes": [{"field": "messages", "value": value}]}
    body = json.dumps({"object": "whatsapp_business_account", "entry": [entry]})
    secret = given["appSecret"]
    signature = "sha256=" + hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
    assert webhook_updates_validator(secret, body.encode(), signature)
    headers = {"content-type": "application/json", "x-hub-signature-256": signature}
    if not ok:
        body = body.replace("Alice", "Mallory")
        assert not webhook_updates_validator(secret, body.encode(), signature)
    return {"name": name, "source": "meta", "headers": headers, "body": body, "ok": ok}


def sign(given):
    sms = {"MessageSid": "SM1", "AccountSid": "AC1", "From": given["contact"], "To": given["proxy"], "Body": "Grüße & more=1"}
    whatsapp = {**sms, "MessageSid": "SM2", "From": "whatsapp:" + given["contact"], "To": "whatsapp:" + given["proxy"]}
    repeated = {**sms, "MessageSid": "SM3", "MediaUrl": ["https://a", "https://b"]}
    text = {"from": given["contact"].lstrip("+"), "id": "wamid.1", "timestamp": "1683229471", "type": "text", "text": {"body": "Hello"}}
    image = {
        "from": given["contact"].lstrip("+"), "id": "wamid.2", "timestamp": "1683229472", "type": "image",
        "image": {"id": "1", "mime_type": "image/jpeg", "sha256": "a", "caption": "Look"},
    }
    return [
        twilio(given, "an SMS", sms),
        twilio(given, "a WhatsApp message", whatsapp),
        twilio(given, "repeated parameters", repeated),
        twilio(given, "a shared key", {**sms, "MessageSid": "SM5"}, shared_key="webhooks_sharedkey_1"),
        twilio(given, "an unknown shared key", {**sms, "MessageSid": "SM6"}, ok=False, shared_key="webhooks_sharedkey_2"),
        twilio(given, "another body than was signed", {**sms, "MessageSid": "SM4"}, ok=False, signed=sms),
        meta(given, "two WhatsApp messages", [text, image]),
        meta(given, "another body than was signed", [{**text, "id": "wamid.3"}], ok=False),
    ]


def verify(given):
    webhook = Webhook(given["secret"])
    events = []
    for received in given["events"]:
        headers, body = received["headers"], received["body"].encode()
        data = webhook.verify(body, headers)
        event = from_http_event(HTTPMessage(headers=headers, body=body))
        assert event.get_data() == data, (event.get_data(), data)
        raw = data.get("raw", {})
        if "messaging_product" in raw:
            update = {"entry": [{"id": "102290129340398", "changes": [{"field": "messages", "value": raw}]}]}
            message = Message.from_update(WhatsApp(phone_id="1", token="t"), update)
            assert message.id == event.get_id(), (message.id, event.get_id())
            assert "+" + message.from_user.wa_id == data["contact"], message.from_user
        events.append({
            "id": event.get_id(), "source": event.get_source(), "type": event.get_type(), "subject": event.get_subject(), "data": data,
        })
    return events


if __name__ == "__main__":
    print(json.dumps({"sign": sign, "verify": verify}[sys.argv[1]](json.load(sys.stdin))))
