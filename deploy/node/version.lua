-- Upstream filter of one version's cluster. Weighted clusters cannot rewrite paths, so this does.
function envoy_on_request(handle)
  handle:headers():replace(":path", "@PATH@")
end

local words = {
  ["500"] = "the worker died on this request or on one beside it in its batch",
  ["503"] = "the model's queue is full, or it has no worker; try again later",
}

function envoy_on_response(handle)
  local headers = handle:headers()
  -- The handler says a status other than 200 in a header: TorchServe closes the connection after any other.
  local status = headers:get("x-shipway-status")
  if status ~= nil then
    headers:remove("x-shipway-status")
    -- gRPC says its status in trailers; its HTTP status is always 200.
    if headers:get("x-shipway-grpc-status") == nil then headers:replace(":status", status) end
    return
  end
  -- TorchServe's own errors, in our words. Of a dead worker it says 500 or 507, as it happens to notice.
  local code = headers:get(":status")
  if code == "507" then code = "500" end
  if words[code] ~= nil then
    local size = handle:body(true):setBytes('{"error":"' .. words[code] .. '"}\n')
    headers = handle:headers()
    headers:replace(":status", code)
    headers:replace("content-length", tostring(size))
  end
end
