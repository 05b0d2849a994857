-- First filter of the edge, on gRPC calls alone: route by model_name and model_version, which stand at the head of a
-- ModelInferRequest, and say the answer's status as gRPC wants it.

local MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

-- A message may be packed, and its frame says whether it is, whatever the call's header. Behind this filter that is an
-- ordinary packed body, for the filter behind the bridge.
local function unpacking(handle, encoding)
  local body = handle:body()
  local headers = handle:headers() -- waiting for the body has invalidated those before
  headers:remove("grpc-encoding")
  headers:remove("content-encoding")
  if body == nil or body:length() < 5 or body:getBytes(0, 1) ~= "\1" then return body, false end
  if encoding == "gzip" then
    headers:replace("content-encoding", "gzip")
    return body, true
  end
  handle:respond({
    [":status"] = "200",
    ["content-type"] = "application/grpc",
    ["grpc-status"] = "12",
    ["grpc-message"] = "grpc-encoding: this node unpacks identity and gzip alone",
    ["grpc-accept-encoding"] = "identity,gzip",
  })
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
