// An AI Services account with its two deployments, and what the broker's identity may do with it. main.bicep makes one
// or two.

@description('What tells this account from the first one; empty for the first.')
param nameSuffix string

@description('Region; one that has the realtime model.')
@allowed([
  'canadacentral'
  'centralus'
  'eastus2'
  'francecentral'
  'swedencentral'
  'southindia'
])
param location string

@description('Tags of every resource.')
param tags object

@description('Log Analytics workspace for diagnostics.')
param workspaceId string

@description('Object id of the broker\'s identity.')
param principalId string

@description('Whether the account refuses keys.')
param disableLocalAuth bool

@description('Realtime model, and the deployment\'s name.')
param realtimeModel string

@description('Version of the realtime model.')
param realtimeModelVersion string

@description('Capacity of the realtime deployment.')
param realtimeCapacity int

@description('Transcription model, and the deployment\'s name.')
param transcriptionModel string

@description('Version of the transcription model.')
param transcriptionModelVersion string

@description('Capacity of the transcription deployment.')
param transcriptionCapacity int

@description('SKU of both deployments.')
param deploymentSku string

@description('AI Foundry project to make; empty makes none.')
param projectName string

var name = 'voice${nameSuffix}-${uniqueString(resourceGroup().id)}'

var roleType = 'Microsoft.Authorization/roleDefinitions'

// https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/ai-machine-learning
var roles = {
  cognitiveServicesOpenAIUser: '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'
  cognitiveServicesUser: 'a97b65f3-24c7-4388-baec-2e87135dc908'
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts
resource account 'Microsoft.CognitiveServices/accounts@2025-06-01' = {
  // checkov:skip=CKV_AZURE_134:browsers post their WebRTC offers to this resource themselves, so its name must resolve for them
  // checkov:skip=CKV2_AZURE_22:a customer-managed key is the owner's decision; nothing of a talk is stored in this resource
  // checkov:skip=CKV_AZURE_236:the parameter voiceAuthentication decides; with entra the account refuses keys
  name: name
  location: location
  tags: tags
  kind: 'AIServices'
  identity: {
    type: 'SystemAssigned'
  }
  sku: {
    name: 'S0'
  }
  properties: {
    // Entra tokens and the three host names need a name of its own.
    customSubDomainName: name
    disableLocalAuth: disableLocalAuth
    publicNetworkAccess: 'Enabled'
    allowProjectManagement: true
    networkAcls: {
      defaultAction: 'Allow'
    }
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts/deployments
resource realtime 'Microsoft.CognitiveServices/accounts/deployments@2025-06-01' = {
  parent: account
  name: realtimeModel
  sku: {
    name: deploymentSku
    capacity: realtimeCapacity
  }
  properties: {
    model: {
      format: 'OpenAI'
      name: realtimeModel
      version: realtimeModelVersion
    }
    versionUpgradeOption: 'OnceCurrentVersionExpired'
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts/deployments
resource transcription 'Microsoft.CognitiveServices/accounts/deployments@2025-06-01' = {
  parent: account
  name: transcriptionModel
  sku: {
    name: deploymentSku
    capacity: transcriptionCapacity
  }
  properties: {
    model: {
      format: 'OpenAI'
      name: transcriptionModel
      version: transcriptionModelVersion
    }
    versionUpgradeOption: 'OnceCurrentVersionExpired'
  }
  // An account takes one change at a time.
  dependsOn: [
    realtime
  ]
}

// https://learn.microsoft.com/azure/templates/microsoft.cognitiveservices/2025-06-01/accounts/projects
resource project 'Microsoft.CognitiveServices/accounts/projects@2025-06-01' = if (!empty(projectName)) {
  parent: account
  name: empty(projectName) ? 'none' : projectName
  location: location
  tags: tags
  identity: {
    type: 'SystemAssigned'
  }
  properties: {}
  dependsOn: [
    transcription
  ]
}

// https://learn.microsoft.com/azure/templates/microsoft.authorization/2022-04-01/roleassignments
resource openAIUser 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(account.id, principalId, roles.cognitiveServicesOpenAIUser)
  scope: account
  properties: {
    roleDefinitionId: subscriptionResourceId(roleType, roles.cognitiveServicesOpenAIUser)
    principalId: principalId
    principalType: 'ServicePrincipal'
    description: 'The broker mints ephemeral tokens and opens realtime sockets'
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.authorization/2022-04-01/roleassignments
resource voiceUser 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(account.id, principalId, roles.cognitiveServicesUser)
  scope: account
  properties: {
    roleDefinitionId: subscriptionResourceId(roleType, roles.cognitiveServicesUser)
    principalId: principalId
    principalType: 'ServicePrincipal'
    description: 'The broker opens Voice Live sockets'
  }
}

// https://learn.microsoft.com/azure/templates/microsoft.insights/2021-05-01-preview/diagnosticsettings
resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: account
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

@description('Name of the account.')
output name string = account.name

@description('The unified endpoint, without a trailing slash.')
output endpoint string = 'https://${account.name}.services.ai.azure.com'

@description('Name of the realtime deployment.')
output realtimeDeployment string = realtime.name

@description('Name of the transcription deployment.')
output transcriptionDeployment string = transcription.name
