"""What Schemathesis has to be told of our API: SDP is text."""

import schemathesis

schemathesis.serializer.alias("application/sdp", "text/plain")
