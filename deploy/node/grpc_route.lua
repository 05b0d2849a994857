-- First filter of the edge, on gRPC calls alone: route by model_name and model_version, which stand at the head of a
-- ModelInferRequest, and say the answer's status as gRPC wants it.

-- The lines before these say MAX_BODY_BYTES, MAX_PACKED_BYTES and MAX_RATIO.

local MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

local function refuse(handle, status, words)
  handle:respond({
    [":status"] = "200",
    ["content-type"] = "application/grpc",
    ["grpc-status"] = status,
    ["grpc-message"] = words,
    ["grpc-accept-encoding"] = "identity,gzip",
  })
end

-- A message may be packed, and its frame says whether it is, whatever the call's header. Behind this filter that is an
-- ordinary packed body, for the filter behind the bridge. That one cuts what becomes too large, so whoever says honestly
-- how large it is (gzip does, in its last four bytes) is refused here, in words.
local function unpacking(handle, encoding)
  local body = handle:body()
  local headers = handle:headers() -- waiting for the body has invalidated those before
  headers:remove("grpc-encoding")
  headers:remove("content-encoding")
  if body == nil or body:length() < 10 or body:getBytes(0, 1) ~= "\1" then return body, false end
  if encoding ~= "gzip" then
    return refuse(handle, "12", "grpc-encoding: this node unpacks identity and gzip alone")
  end
  local packed = body:length() - 5
  local one, two, three, four = body:getBytes(body:length() - 4, 4):byte(1, 4)
  local size = one + two * 2 ^ 8 + three * 2 ^ 16 + four * 2 ^ 24
  if size > MAX_BODY_BYTES then
    local words = "the request body is larger than %d bytes, the most that this node takes; unpacked it has %d"
    return refuse(handle, "8", words:format(MAX_BODY_BYTES, size))
  elseif packed > MAX_PACKED_BYTES then
    local words = "a packed message may have %d bytes at most, and this one has %d; send it without compression"
    return refuse(handle, "8", words:format(MAX_PACKED_BYTES, packed))
  elseif size > MAX_RATIO * packed then
    local words = "a packed message may become %d times as large at most, and this one has %d and %d bytes; send it without compression"
    return refuse(handle, "8", words:format(MAX_RATIO, packed, size))
  end
  headers:replace("content-encoding", "gzip")
  return body, true
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("x-shipway-model")
  headers:remove("x-shipway-version")
  headers:replace("x-shipway-protocol", "oip_grpc")
  local infer = headers:get(":path") == MODEL_INFER
  local encoding = headers:get("grpc-encoding")
  local body, packed
  if encoding ~= nil then
    body, packed = unpacking(handle, encoding)
  elseif infer then
    body = handle:body()
  end
  -- A packed message is routed by grpc_unpacked.lua.
  if infer and body ~= nil and not packed then
    route_by_head(handle, body, 6) -- behind gRPC's frame of five bytes
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("x-shipway-grpc-status")
  if status == nil then return end
  local message = headers:get("x-shipway-grpc-message") or ""
  headers:remove("x-shipway-grpc-status")
  headers:remove("x-shipway-grpc-message")
  -- One of Envoy's own answers from before the bridge (a body over the limit) passes it as grpc_errors.lua left it.
  local before_bridge = headers:get("content-type") == "application/x-protobuf"
  if before_bridge then headers:replace("content-type", "application/grpc") end
  if before_bridge or headers:get("grpc-status") ~= nil then
    headers:replace("grpc-status", status)
    headers:replace("grpc-message", message)
    return
  end
  for _ in handle:bodyChunks() do end
  local trailers = handle:trailers()
  if trailers ~= nil then
    trailers:replace("grpc-status", status)
    trailers:replace("grpc-message", message)
  end
end
